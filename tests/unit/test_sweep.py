"""Sweeps against loops written out: one intervention, one plain run, one number."""

import json
import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import hf_whisper, hooked, inputs
from tiny_checkpoint import save_checkpoint, tiny_tokenizer

from hooked_asr import FrontEndConfig, HookedWhisper, InputError, ModelConfig, StackConfig
from hooked_asr.audio import load_audio, match_noise
from hooked_asr.interventions import PARTS, InterventionError
from hooked_asr.patching import (
    SitesError,
    SweepError,
    SweepResult,
    components,
    heads,
    kl,
    log_prob,
    logit_diff,
    parse_sites,
    sweep,
    transcript_log_prob,
)
from hooked_asr.patching.inputs import patching_inputs
from hooked_asr.patching.metric_text import MetricError, parse_metric
from hooked_asr.patching.result import ResultError

LAYOUT = "unequal_heads"  # two encoder heads of 16, eight decoder heads of 4
N_POS = 7
A, B = 11, 23  # two tokens


@pytest.fixture(scope="module")
def model():
    return hooked(LAYOUT)


@pytest.fixture(scope="module")
def clean(model):
    return inputs(model, seed=0)


@pytest.fixture(scope="module")
def reference(model):
    return inputs(model, seed=1)


def difference(logits):
    """A user's own metric."""
    return logits[:, -1, A] - logits[:, -1, B]


def swept(model, clean, sites, metric=difference, **options):
    return sweep(model, clean=clean, sites=sites, metric=metric, progress=False, **options)


# --- The slow, obvious loop over heads, on the reference ------------------------------------------

OUT_PROJ = {
    "encoder.attn": "model.encoder.layers.{}.self_attn.out_proj",
    "decoder.attn": "model.decoder.layers.{}.self_attn.out_proj",
    "decoder.cross_attn": "model.decoder.layers.{}.encoder_attn.out_proj",
}


@torch.no_grad()
def hf_run(hf, module, edit, run):
    """The reference's logits, `edit` applied to what goes into one of its modules."""

    def pre_hook(module, args):
        return (edit(args[0].clone()),)

    handle = hf.get_submodule(module).register_forward_pre_hook(pre_hook)
    logits = hf(run[0], decoder_input_ids=run[1]).logits
    handle.remove()
    return logits


def slow_heads(hf, part, groups, new, run, metric):
    """The metric for each layer, head and group of positions, with `new(z, module)` there."""
    n_heads = 2 if part.startswith("encoder") else 8
    d_head = 32 // n_heads
    values = []
    for layer, head, group in product(range(2), range(n_heads), groups):
        module = OUT_PROJ[part].format(layer)
        mine = slice(head * d_head, (head + 1) * d_head)

        def edit(z, module=module, mine=mine, group=group):
            made = new(z, module)
            for clip in range(len(z)):
                for position in range(z.shape[1]):
                    if group is None or position in group:
                        z[clip, position, mine] = made[clip, position, mine]
            return z

        values.append(float(metric(hf_run(hf, module, edit, run)).mean()))
    return torch.tensor(values)


def new_values(hf, reference):
    """What each operation puts in place of a tensor `z` that enters a module."""
    theirs = {}
    for path, layer in product(OUT_PROJ.values(), range(2)):
        module = path.format(layer)
        hf_run(hf, module, lambda z, module=module: theirs.setdefault(module, z), reference)
    return {
        "replace": lambda z, module: theirs[module],
        "interpolate": lambda z, module: 0.7 * z + 0.3 * theirs[module],
        "zero": lambda z, module: torch.zeros_like(z),
        "mean": lambda z, module: theirs[module].mean((0, 1)).expand_as(z),
        "own mean": lambda z, module: z.mean(1, keepdim=True).expand_as(z),
    }


OPTIONS = {
    "replace": {"operation": "replace"},
    "interpolate": {"operation": "replace", "alpha": 0.3},
    "zero": {"operation": "zero"},
    "mean": {"operation": "mean"},
    "own mean": {"operation": "mean", "reference": None},
}


@pytest.mark.parametrize("operation", OPTIONS)
@pytest.mark.parametrize("part", OUT_PROJ)
def test_heads_equal_a_loop_over_the_reference_model(model, clean, reference, part, operation):
    hf = hf_whisper(LAYOUT)
    options = {"reference": reference, **OPTIONS[operation]}
    new = new_values(hf, reference)[operation]
    for positions, groups in ((None, [None]), ([1, (2, 4), range(3, 6)], [[1], [2, 4], [3, 4, 5]])):
        result = swept(model, clean, heads(part, positions), **options)
        expected = slow_heads(hf, part, groups, new, clean, difference)
        torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=0)
        assert expected.std() > 1e-4


@pytest.mark.parametrize("part", ["decoder.attn", "decoder.cross_attn"])
def test_each_position_of_each_head(model, clean, reference, part):
    hf = hf_whisper(LAYOUT)
    result = swept(model, clean, heads(part, "each"), reference=reference)
    new = new_values(hf, reference)["replace"]
    expected = slow_heads(hf, part, [[p] for p in range(N_POS)], new, clean, difference)
    torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=1e-5)
    assert result.axes == {"layer": [0, 1], "head": list(range(8)), "position": list(range(N_POS))}
    assert result.values.shape == (2, 8, N_POS)


def test_each_encoder_position_is_one_of_fifty_a_second(model, clean):
    result = swept(model, clean, heads("encoder.attn", "each"), operation="zero")
    assert result.values.shape == (2, 2, 50)
    assert result.sites[-1] == "encoder.1.attn.1@49"


# --- The same for components, with plain hooks ----------------------------------------------------

EVERY_PART = {
    "encoder": [part for part in PARTS if "cross" not in part],
    "decoder": list(PARTS),
}


@torch.no_grad()
def slow_components(model, stack, parts, groups, new, run, metric):
    values = []
    for layer, part, group in product(range(model.config.stack(stack).n_layers), parts, groups):
        name = f"{stack}.{layer}.{PARTS[part]}"

        def edit(x, hook, group=group):
            x = x.clone()
            made = new(x, hook.name)
            for position in range(x.shape[1]) if group is None else group:
                x[:, position] = made[:, position]
            return x

        logits = model.run_with_hooks(*run, fwd_hooks=[(name, edit)])
        values.append(float(metric(logits).mean()))
    return torch.tensor(values)


@torch.no_grad()
def new_streams(model, reference):
    _, cache = model.run_with_cache(*reference)
    return {
        "replace": lambda x, name: cache[name],
        "interpolate": lambda x, name: 0.7 * x + 0.3 * cache[name],
        "zero": lambda x, name: torch.zeros_like(x),
        "mean": lambda x, name: cache[name].mean((0, 1)).expand_as(x),
        "own mean": lambda x, name: x.mean(1, keepdim=True).expand_as(x),
    }


@pytest.mark.parametrize("operation", OPTIONS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_components_equal_a_loop_of_plain_hooks(model, clean, reference, stack, operation):
    options = {"reference": reference, **OPTIONS[operation]}
    new = new_streams(model, reference)[operation]
    parts = EVERY_PART[stack]
    for positions, groups in ((None, [None]), ([0, (2, 5)], [[0], [2, 5]])):
        result = swept(model, clean, components(stack, parts, positions), **options)
        expected = slow_components(model, stack, parts, groups, new, clean, difference)
        torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=1e-5)


def test_replacing_the_whole_stream_gives_the_reference_run(model, clean, reference):
    result = swept(model, clean, components("decoder", "resid_post"), reference=reference)
    assert result.values[-1, 0].item() == pytest.approx(result.reference, abs=1e-6)
    assert result.normalized[-1, 0].item() == pytest.approx(1.0, abs=1e-4)


def test_denoising_is_the_same_sweep_the_other_way_round(model, clean, reference):
    sites = heads("decoder.cross_attn")
    noising = swept(model, clean, sites, reference=reference)
    denoising = swept(model, reference, sites, reference=clean)
    assert (denoising.clean, denoising.reference) == (noising.reference, noising.clean)
    hf = hf_whisper(LAYOUT)
    new = new_values(hf, clean)["replace"]
    expected = slow_heads(hf, "decoder.cross_attn", [None], new, reference, difference)
    torch.testing.assert_close(denoising.values.flatten(), expected, atol=1e-5, rtol=1e-5)


def test_a_batch_gives_the_mean_of_its_clips(model, clean, reference):
    sites = components("decoder", ["attn", "mlp"])
    together = swept(model, clean, sites, reference=reference)
    one_by_one = [
        swept(model, one, sites, reference=other)
        for one, other in zip(clips(clean), clips(reference), strict=True)
    ]
    mean = torch.stack([result.values for result in one_by_one]).mean(0)
    torch.testing.assert_close(together.values, mean, atol=1e-5, rtol=1e-5)
    assert together.clean == pytest.approx(sum(r.clean for r in one_by_one) / 2, abs=1e-5)


def clips(run):
    return [tuple(x[i : i + 1] for x in run) for i in range(len(run[0]))]


def test_one_reference_stands_for_every_clip(model, clean, reference):
    sites = components("decoder", ["attn", "mlp"])
    one = tuple(x[:1] for x in reference)
    doubled = tuple(x[:1].repeat(2, *[1] * (x.ndim - 1)) for x in reference)
    torch.testing.assert_close(
        swept(model, clean, sites, reference=one).values,
        swept(model, clean, sites, reference=doubled).values,
    )


def stacks(n_ctx):
    return st.builds(
        StackConfig,
        n_layers=st.integers(1, 3),
        n_heads=st.sampled_from([1, 2, 4]),
        d_model=st.just(8),
        d_mlp=st.sampled_from([6, 16]),
        n_ctx=st.just(n_ctx),
        activation=st.sampled_from(["gelu", "relu"]),
    )


@given(encoder=stacks(4), decoder=stacks(9), n_clips=st.integers(1, 2), data=st.data())
@settings(max_examples=10, deadline=None)
def test_any_sweep_of_any_model_equals_the_loop(encoder, decoder, n_clips, data):
    stack, operation = (
        data.draw(st.sampled_from(names)) for names in (["encoder", "decoder"], sorted(OPTIONS))
    )
    parts = data.draw(st.lists(st.sampled_from(EVERY_PART[stack]), min_size=1, unique=True))
    n_pos = data.draw(st.integers(2, 9))
    positions = st.integers(0, (4 if stack == "encoder" else n_pos) - 1)
    groups = data.draw(
        st.none()
        | st.lists(st.lists(positions, min_size=1, max_size=3, unique=True), min_size=1, max_size=3)
    )
    model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=3), encoder, decoder, d_vocab=30))
    model.init_weights(std=0.5)
    clean, reference = (
        (torch.randn(n_clips, 3, 8), torch.randint(30, (n_clips, n_pos))) for _ in range(2)
    )
    metric = partial(difference_of, 3, 7)
    result = swept(
        model,
        clean,
        components(stack, parts, groups),
        metric,
        **{"reference": reference, **OPTIONS[operation]},
    )
    new = new_streams(model, reference)[operation]
    expected = slow_components(model, stack, parts, groups or [None], new, clean, metric)
    torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=1e-5)


def difference_of(a, b, logits):
    return logits[:, -1, a] - logits[:, -1, b]


# --- What a result says ---------------------------------------------------------------------------


def test_axes_names_and_the_untouched_values(model, clean, reference):
    result = swept(model, clean, heads(), reference=reference)
    with torch.no_grad():
        assert result.clean == pytest.approx(float(difference(model(*clean)).mean()))
        assert result.reference == pytest.approx(float(difference(model(*reference)).mean()))
    assert list(result.axes) == ["layer", "head"]
    assert result.values.shape == (2, 8)
    assert result.sites[:2] == ["decoder.0.cross_attn.0", "decoder.0.cross_attn.1"]
    assert result.sites[-1] == "decoder.1.cross_attn.7"
    assert (result.operation, result.alpha, result.metric) == ("replace", 1.0, "difference")
    assert result.model == "WhisperForConditionalGeneration"


def test_components_are_named_in_the_order_asked_for(model, clean):
    sites = components("decoder", ["mlp", "attn"], positions=[3, (2, 5), range(2, 6)])
    result = swept(model, clean, sites)
    assert result.axes == {
        "layer": [0, 1],
        "component": ["mlp", "attn"],
        "position": [3, "2,5", "2-5"],
    }
    assert result.sites[:4] == [
        "decoder.0.mlp@3",
        "decoder.0.mlp@2,5",
        "decoder.0.mlp@2-5",
        "decoder.0.attn@3",
    ]


def test_the_default_parts_are_what_a_layer_writes_and_the_stream():
    def chosen(sites):
        return sites.grid(hooked().config, n_pos=5).axes["component"]

    assert chosen(components("encoder")) == ["attn", "mlp", "resid_post"]
    assert chosen(components("decoder")) == ["attn", "cross_attn", "mlp", "resid_post"]
    assert chosen(components("decoder", "mlp")) == ["mlp"]


def test_without_a_reference_sites_are_zeroed(model, clean):
    result = swept(model, clean, components("decoder", "mlp"))
    assert result.operation == "zero"
    assert math.isnan(result.reference)
    assert result.normalized.isnan().all()


def test_a_reference_may_be_longer_for_a_mean(model, clean):
    longer = inputs(model, n_pos=12, seed=3)
    result = swept(model, clean, heads(), reference=longer, operation="mean")
    expected = new_values(hf_whisper(LAYOUT), longer)["mean"]
    slow = slow_heads(hf_whisper(LAYOUT), "decoder.cross_attn", [None], expected, clean, difference)
    torch.testing.assert_close(result.values.flatten(), slow, atol=1e-5, rtol=1e-5)


def test_token_texts_come_with_decoder_positions():
    model = HookedWhisper.from_hf(hf_whisper(), SimpleNamespace(tokenizer=tiny_tokenizer()))
    one_clip = inputs(model, batch=1)
    result = swept(model, one_clip, components("decoder", "mlp", positions="each"))
    assert result.tokens == [tiny_tokenizer().decode([token]) for token in one_clip[1][0]]
    assert list(result.to_pandas()["token"]) == result.tokens * 2
    assert swept(model, one_clip, components("encoder", "mlp")).tokens is None
    assert swept(model, inputs(model, batch=2), components("decoder", "mlp")).tokens is None


def test_progress_is_shown_unless_told_not_to(model, clean, capsys):
    sweep(model, clean=clean, sites=components("decoder", "mlp"), metric=difference)
    assert "zero decoder" in capsys.readouterr().err
    swept(model, clean, components("decoder", "mlp"))
    assert not capsys.readouterr().err


# --- Metrics --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logits():
    return torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))


def test_logit_diff(logits):
    for pos in (-1, 2):
        expected = [float(logits[b, pos, 3] - logits[b, pos, 8]) for b in range(2)]
        assert logit_diff(3, 8, pos)(logits).tolist() == pytest.approx(expected)
    assert torch.equal(logit_diff(3, 8)(logits), logit_diff(3, 8, 4)(logits))


def test_log_prob(logits):
    for pos in (-1, 0):
        expected = [float(logits[b, pos, 6] - logits[b, pos].exp().sum().log()) for b in range(2)]
        assert log_prob(6, pos)(logits).tolist() == pytest.approx(expected, rel=1e-5)


def test_transcript_log_prob(logits):
    tokens = torch.tensor([[1, 4, 2, 8, 5], [1, 7, 7, 0, 3]])
    for start in (1, 3):
        expected = [
            sum(float(logits[b, p - 1].log_softmax(-1)[tokens[b, p]]) for p in range(start, 5))
            / (5 - start)
            for b in range(2)
        ]
        got = transcript_log_prob(tokens, from_position=start)(logits)
        assert got.tolist() == pytest.approx(expected, rel=1e-5)


def test_nothing_predicts_the_first_token():
    with pytest.raises(ValueError, match="nothing comes before"):
        transcript_log_prob(torch.tensor([[1, 2]]), from_position=0)


def test_kl(logits):
    before = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))

    def by_hand(b, p):
        return sum(
            float(before[b, p].softmax(-1)[v])
            * float(before[b, p].log_softmax(-1)[v] - logits[b, p].log_softmax(-1)[v])
            for v in range(9)
        )

    everywhere = [sum(by_hand(b, p) for p in range(5)) / 5 for b in range(2)]
    assert kl(before)(logits).tolist() == pytest.approx(everywhere, rel=1e-4)
    for pos in (2, -1):
        at_one = [by_hand(b, pos) for b in range(2)]
        assert kl(before, pos)(logits).tolist() == pytest.approx(at_one, rel=1e-4)
    assert kl(logits)(logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_metrics_of_half_precision_logits_are_computed_in_full(logits):
    tokens = torch.tensor([[1, 4, 2, 8, 5]] * 2)
    half = logits.bfloat16()
    for metric in (logit_diff(3, 8), log_prob(6), transcript_log_prob(tokens), kl(half + 1)):
        assert metric(half).dtype == torch.float32
        assert torch.equal(metric(half), metric(half.float()))


@pytest.mark.parametrize(
    "metric",
    [
        logit_diff(A, B),
        log_prob(A, pos=3),
        difference,
        lambda logits: logits[0, -1, A],
        lambda logits: logits[0, -1, A].item(),
        lambda logits: logits[:, -1].argmax(-1) == A,
    ],
)
def test_any_function_of_the_logits_is_a_metric(model, clean, metric):
    sites = components("decoder", "mlp")
    result = swept(model, clean, sites, metric)
    slow = slow_components(
        model,
        "decoder",
        ["mlp"],
        [None],
        lambda x, name: torch.zeros_like(x),
        clean,
        lambda logits: torch.as_tensor(metric(logits)).float(),
    )
    torch.testing.assert_close(result.values.flatten(), slow, atol=1e-5, rtol=1e-5)
    assert isinstance(result.metric, str)


def test_a_metric_says_what_it_is(model, clean):
    result = swept(model, clean, components("decoder", "mlp"), logit_diff(A, B))
    assert result.metric == "logit_diff(11, 23, pos=-1)"
    anonymous = swept(model, clean, components("decoder", "mlp"), partial(difference_of, A, B))
    assert anonymous.metric == "metric"


def test_nothing_stays_attached_when_the_metric_fails(model, clean, reference):
    calls = []

    def third_time_unlucky(logits):
        calls.append(logits)
        if len(calls) == 3:
            raise RuntimeError("unlucky")
        return difference(logits)

    with pytest.raises(RuntimeError, match="unlucky"):
        swept(model, clean, heads(), third_time_unlucky, reference=reference)
    assert not model.has_hooks


# --- What cannot be swept -------------------------------------------------------------------------


def test_to_replace_needs_a_reference(model, clean):
    with pytest.raises(SweepError, match="needs a reference"):
        swept(model, clean, heads(), operation="replace")


def test_to_replace_needs_as_many_tokens(model, clean):
    with pytest.raises(SweepError, match="clean has 7 tokens and reference 9"):
        swept(model, clean, heads(), reference=inputs(model, n_pos=9))


def test_an_unknown_operation(model, clean):
    with pytest.raises(
        SweepError, match=r"'replace', 'zero' and 'mean', an action .*; got 'ablate'"
    ):
        swept(model, clean, heads(), operation="ablate")


@pytest.mark.parametrize("operation", ["zero", "mean"])
def test_a_share_of_nothing(model, clean, reference, operation):
    with pytest.raises(SweepError, match=r"alpha is for 'replace' alone; got alpha=0\.5"):
        swept(model, clean, heads(), reference=reference, operation=operation, alpha=0.5)


@pytest.mark.parametrize("part", ["cross_attn", "encoder.cross_attn", "decoder.mlp", "decoder", ""])
def test_heads_of_what_has_none(part):
    with pytest.raises(SitesError, match=r"heads are those of 'encoder\.attn'"):
        heads(part)


def test_unknown_parts_and_stacks():
    with pytest.raises(SitesError, match="the decoder has no part 'mpl'; there are attn, cross_"):
        components("decoder", ["attn", "mpl"])
    with pytest.raises(SitesError, match="the encoder has no part 'cross_attn'; there are attn, m"):
        components("encoder", "cross_attn")
    with pytest.raises(SitesError, match="no stack 'head'; there are 'encoder' and 'decoder'"):
        components("head")


@pytest.mark.parametrize("positions", [[7], [(3, 8)], [0, range(5, 8)]])
def test_positions_beyond_the_tokens(model, clean, positions):
    with pytest.raises(SitesError, match="this input has positions 0 to 6; asked for"):
        swept(model, clean, heads(positions=positions))


def test_positions_that_are_none(model, clean):
    with pytest.raises(SitesError, match="empty"):
        heads(positions=[])
    with pytest.raises(SitesError, match="positions are None, 'each' or a list; got 'all'"):
        heads(positions="all")
    for positions in ([()], [-1], [(2, -1)]):
        with pytest.raises(InterventionError, match="one or more numbers from 0 on"):
            swept(model, clean, heads(positions=positions))


def test_positions_may_be_numbers_of_any_kind(model, clean, tmp_path):
    positions = [torch.tensor(0), np.int64(1), np.arange(2, 4).tolist()]
    result = swept(model, clean, components("decoder", "mlp", positions))
    assert result.axes["position"] == [0, 1, "2-3"]
    result.save(tmp_path / "result.json")


# --- Results on disk and in tables ----------------------------------------------------------------


def result_of(values, reference=3.0, tokens=None, **axes):
    axes = axes or {"layer": [0, 1], "component": ["attn", "mlp"]}
    names = ["-".join(map(str, labels)) for labels in product(*axes.values())]
    return SweepResult(
        values=torch.tensor(values),
        axes=axes,
        sites=names,
        clean=1.0,
        reference=reference,
        metric="made up",
        operation="replace",
        alpha=0.5,
        model="some/model",
        tokens=tokens,
    )


VALUES = [[1.5, -3.0], [1.25, 1.0]]


def test_normalized_is_the_share_of_the_way_to_the_reference():
    result = result_of(VALUES)
    assert result.change.tolist() == [[0.5, -4.0], [0.25, 0.0]]
    assert result.normalized.tolist() == [[0.25, -2.0], [0.125, 0.0]]


@pytest.mark.parametrize("reference", [1.0, math.nan])
def test_no_way_to_go_has_no_share(reference):
    result = result_of(VALUES, reference)
    assert result.normalized.isnan().all()
    assert "normalized" not in result.to_pandas()


def test_a_table_has_a_row_for_each_site():
    table = result_of(VALUES).to_pandas()
    assert list(table.columns) == ["layer", "component", "site", "value", "change", "normalized"]
    assert list(table["layer"]) == [0, 0, 1, 1]
    assert list(table["component"]) == ["attn", "mlp", "attn", "mlp"]
    assert list(table["site"]) == ["0-attn", "0-mlp", "1-attn", "1-mlp"]
    assert list(table["value"]) == [1.5, -3.0, 1.25, 1.0]
    assert list(table["change"]) == [0.5, -4.0, 0.25, 0.0]


def test_top_are_the_strongest_either_way():
    top = result_of(VALUES).top(3)
    assert list(top["site"]) == ["0-mlp", "0-attn", "1-attn"]
    assert list(top.index) == [0, 1, 2]
    assert len(result_of(VALUES).top(99)) == 4


def test_tokens_stand_beside_single_positions_only():
    tokens = ["<start>", " ask", " not"]
    each = result_of([[1.0, 2.0]], tokens=tokens, layer=[0], position=[0, 2]).to_pandas()
    assert list(each["token"]) == ["<start>", " not"]
    spans = result_of([[1.0, 2.0]], tokens=tokens, layer=[0], position=[0, "1-2"]).to_pandas()
    assert "token" not in spans
    assert "token" not in result_of(VALUES, tokens=tokens).to_pandas()


@pytest.mark.parametrize("reference", [3.0, math.nan])
def test_json_keeps_everything(model, clean, tmp_path, reference):
    before = result_of([[0.1, math.nan], [1e-9, -3e7]], reference, tokens=["a", "b"])
    before.save(tmp_path / "deep" / "result.json")
    text = (tmp_path / "deep" / "result.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    after = SweepResult.load(tmp_path / "deep" / "result.json")
    assert after.values.dtype == torch.float32
    torch.testing.assert_close(after.values, before.values, equal_nan=True, rtol=0, atol=0)
    assert math.isnan(reference) == math.isnan(after.reference)
    for name in ("axes", "sites", "clean", "metric", "operation", "alpha", "model", "tokens"):
        assert getattr(after, name) == getattr(before, name)


def test_json_keeps_the_very_numbers_of_a_sweep(model, clean, reference, tmp_path):
    before = swept(model, clean, heads(positions="each"), reference=reference)
    before.save(tmp_path / "result.json")
    after = SweepResult.load(tmp_path / "result.json")
    assert torch.equal(after.values, before.values)
    assert (after.clean, after.reference) == (before.clean, before.reference)


def test_csv_is_the_table(tmp_path):
    result = result_of(VALUES)
    result.save(tmp_path / "result.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "result.csv"), result.to_pandas())


@pytest.mark.parametrize("name", ["result.txt", "result", "result.JSON.gz"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ResultError, match=r"saved as \.json, \.csv, \.html"):
        result_of(VALUES).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- What the command line writes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("decoder.cross_attn", heads("decoder.cross_attn")),
        ("encoder.attn", heads("encoder.attn")),
        ("decoder.attn@each", heads("decoder.attn", "each")),
        ("decoder", components("decoder")),
        ("encoder@each", components("encoder", positions="each")),
        ("decoder.mlp", components("decoder", "mlp")),
        ("encoder.resid_post@each", components("encoder", "resid_post", "each")),
    ],
)
def test_sites_in_words(text, sites):
    assert parse_sites(text) == sites


@pytest.mark.parametrize(
    "text",
    [
        *("", "mlp", "decoder.", "decoder@", "decoder@3", "decoder@each@each", "decoder.mpl"),
        *("decoder.3.mlp", "encoder.cross_attn", "attn", "decoder.3.attn", "decoder.head"),
    ],
)
def test_sites_that_are_none(text):
    with pytest.raises(SitesError):
        parse_sites(text)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A tiny model that reads and writes."""
    return HookedWhisper.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def said(speaker):
    """A run of the text " ask her no", behind a prompt of two tokens, and its logits."""
    mel, _ = inputs(speaker, batch=1)
    tokens = speaker.to_tokens("ask her no")
    with torch.no_grad():
        return SimpleNamespace(mel=mel, tokens=tokens, logits=speaker(mel, tokens))


def parsed(speaker, said, text):
    return parse_metric(text, speaker, {"mel": said.mel, "tokens": said.tokens}, prompt_length=2)


def test_metrics_in_words(speaker, said):
    ask, her, no, a = (speaker.to_single_token(word) for word in (" ask", " her", " no", "a"))
    assert said.tokens[0, 2:].tolist() == [ask, her, no]
    written_out = {
        "transcript": transcript_log_prob(said.tokens, 2),
        "kl": kl(said.logits * 0.5),
        "log_prob:her": log_prob(her, 2),  # where it comes next
        "log_prob: her": log_prob(her, 2),
        "log_prob:her@4": log_prob(her, 4),
        "log_prob:it": log_prob(speaker.to_single_token(" it"), 4),  # nowhere: at the end
        "log_prob:<|endoftext|>@1": log_prob(40, 1),
        "logit_diff:no/her": logit_diff(no, her, 3),
        "logit_diff:ask/no@0": logit_diff(ask, no, 0),
        "log_prob:b@2": log_prob(speaker.to_single_token("b"), 2),  # " b" is two tokens
    }
    assert a != speaker.to_single_token(" a")
    for text, metric in written_out.items():
        ours = parsed(speaker, said, text)
        kind, _, words = text.partition("@")[0].partition(":")
        place = metric.name.rpartition(", ")[2]
        assert ours.name == (f"{kind}({words}, {place}" if words else metric.name)
        if text != "kl":
            torch.testing.assert_close(ours(said.logits), metric(said.logits))
    ours = parsed(speaker, said, "kl")(said.logits * 0.5)
    torch.testing.assert_close(ours, kl(said.logits)(said.logits * 0.5))
    assert parsed(speaker, said, "kl@3").name == "kl(pos=3)"


@pytest.mark.parametrize(
    "text",
    [
        *("", "loss", "transcript:no", "kl:no", "log_prob", "log_prob:", "logit_diff:no"),
        *("logit_diff:no/her/it", "logit_diff", "log_prob:no@x", "transcript@2"),
        *("log_prob:no@5", "kl@99"),
    ],
)
def test_metrics_that_are_none(speaker, said, text):
    with pytest.raises((MetricError, InputError)):
        parsed(speaker, said, text)


def test_an_unknown_metric_is_answered_with_those_there_are(speaker, said):
    with pytest.raises(MetricError, match=r"no metric 'loss'; there are transcript .*kl.*log_prob"):
        parsed(speaker, said, "loss")


def test_a_word_of_several_tokens_is_taken_apart(speaker, said):
    with pytest.raises(InputError, match=r"'xyz' is 3 tokens: \['x', 'y', 'z'\]"):
        parsed(speaker, said, "log_prob:xyz")


def test_words_need_a_tokenizer(said):
    with pytest.raises(InputError, match="without a tokenizer"):
        parsed(hooked("untied"), said, "log_prob:her")


def test_an_empty_transcript_has_no_log_probability(speaker, said):
    tokens = speaker.to_tokens("")
    with pytest.raises(MetricError, match="transcript is empty"):
        parse_metric("transcript", speaker, {"mel": said.mel, "tokens": tokens}, 2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    time = torch.arange(12_000) / 16_000
    soundfile.write(path, (0.3 * torch.sin(2000 * time)).numpy(), 16_000)
    return path


def test_both_runs_say_the_models_own_text(speaker, clip):
    made = patching_inputs(speaker, clip)
    assert made.text == speaker.transcribe(clip)
    assert torch.equal(made.clean["mel"], speaker.to_mel(clip))
    assert torch.equal(made.clean["tokens"], speaker.to_tokens(made.text))
    assert torch.equal(made.reference["tokens"], made.clean["tokens"])
    assert made.metric.name == "transcript_log_prob(from_position=2)"


def test_references(speaker, clip):
    samples = load_audio(clip)
    noise = patching_inputs(speaker, clip, "noise", text="no", seed=3).reference["mel"]
    assert torch.equal(noise, speaker.to_mel(match_noise(samples, 3)))
    other = patching_inputs(speaker, clip, str(clip), text="no").reference["mel"]
    assert torch.equal(other, speaker.to_mel(clip))
    silence = patching_inputs(speaker, clip, "silence", text="no").reference["mel"]
    assert silence.unique().numel() == 1


def test_a_multilingual_model_is_told_the_language_or_tells_it(clip, tmp_path):
    model = HookedWhisper.from_pretrained(save_checkpoint(tmp_path, "multilingual"))
    made = patching_inputs(model, clip, text="no", language="german")
    assert torch.equal(made.clean["tokens"], model.to_tokens("no", "de"))
    assert made.metric.name == "transcript_log_prob(from_position=4)"
    (told,) = model.detect_language(model.to_mel(clip))
    made = patching_inputs(model, clip, text="no")
    assert torch.equal(made.clean["tokens"], model.to_tokens("no", told))


def test_a_file_of_something_else_is_no_result(tmp_path):
    for text in ("{}", "[1, 2]", "not JSON", '{"values": [1.0]}'):
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(ResultError, match=r"other\.json holds no saved sweep"):
            SweepResult.load(path)
