"""Direct logit attribution against Hugging Face's logits, and sums made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_qwen2
import torch

from hooked_asr import HookedWhisper
from hooked_asr.interventions import zero
from hooked_asr.lenses import DirectAttribution, LensError, direct_logit_attribution
from hooked_asr.models.inputs import InputError
from hooked_asr.nano import bundle
from hooked_asr.patching.saving import ResultError

OF = ["layer", "component", "head", "neuron"]
TOKEN = 5


def attribute(model, run, **options):
    return direct_logit_attribution(model, run, progress=False, **options)


@pytest.fixture(scope="module")
def model():
    return tiny.hooked("deep_decoder")


@pytest.fixture(scope="module")
def run(model):
    return tiny.inputs(model)


@pytest.fixture(scope="module")
def heads(model, run):
    return attribute(model, run, of="head", tokens=TOKEN)


# --- Hugging Face's logits ------------------------------------------------------------------------


@torch.no_grad()
def whisper_case(layout, dtype):
    """Our model, a run, Hugging Face's logits of it, and where it is no padding."""
    model = tiny.hooked(layout, dtype)
    mel, tokens = tiny.inputs(model)
    logits = tiny.hf_whisper(layout, dtype)(mel, decoder_input_ids=tokens).logits
    return model, (mel, tokens), logits, torch.ones_like(tokens, dtype=torch.bool)


@torch.no_grad()
def qwen2_case(layout, batch):
    model, run = tiny_qwen2.hooked(layout), tiny_qwen2.inputs(**tiny_qwen2.BATCHES[batch])
    logits = tiny_qwen2.hf_qwen2_audio(layout)(**tiny_qwen2.hf_inputs(run)).logits
    return model, run, logits, run["attention_mask"].bool()


def check_sum(found, logits, real, tolerance):
    """`tolerance` in parts of the greatest term, or of the logit."""
    assert torch.equal(found.real, real)
    assert torch.equal(found.targets[real], logits.argmax(-1)[real])
    expected = logits.amax(-1)[real]
    values = found.values[:, real]
    size = torch.maximum(values.abs().amax(0), expected.abs())
    assert ((values.sum(0) - expected).abs() <= tolerance * size).all()
    assert ((found.logits[real] - expected).abs() <= tolerance * size).all()
    torch.testing.assert_close(found.remainder[real], found.logits[real] - values.sum(0))
    assert found.values[:, ~real].isnan().all()
    assert (found.targets[~real] == -1).all()


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("layout", ["deep_decoder", "untied", "unequal_heads"])
def test_terms_sum_to_the_references_logit(layout, dtype, tolerance, of):
    model, run, logits, real = whisper_case(layout, dtype)
    found = attribute(model, run, of=of)
    assert found.values.dtype == dtype
    check_sum(found, logits, real, tolerance)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize(
    ("layout", "batch"), [("gqa", "left_padded"), ("tied", "right_padded"), ("deep", "text_only")]
)
def test_terms_sum_to_qwen2_audios_logit(layout, batch, of):
    model, run, logits, real = qwen2_case(layout, batch)
    check_sum(attribute(model, run, of=of), logits, real, 1e-5)


@pytest.mark.parametrize("of", OF)
def test_terms_sum_to_qwen2_audios_logit_in_float64(of):
    model = tiny_qwen2.hooked("gqa", torch.float64)
    run = tiny_qwen2.inputs([[61]])
    run["mel"] = run["mel"].double()
    # As in the reference, its norm works in float32 unless a hook acts there.
    exact = [("decoder_final_ln.hook_scale", lambda x, hook: x.clone())]
    with torch.no_grad():
        logits = model.run_with_hooks(**run, fwd_hooks=exact)
    check_sum(
        attribute(model, run, of=of, fwd_hooks=exact), logits, run["attention_mask"].bool(), 1e-10
    )


def test_half_precision_is_attributed_in_float32():
    model = tiny.hooked("base", torch.bfloat16)
    found = attribute(model, tiny.inputs(model))
    assert found.values.dtype == torch.float32
    assert (found.remainder.abs() < 0.05 * found.values.abs().sum(0)).all()


# --- Terms by hand --------------------------------------------------------------------------------


def read_by_hand(vector, stream, norm, unembedding, centred, eps):
    """What a vector in the last stream adds to a logit: NumPy, one number after the other."""
    mean = sum(stream) / len(stream) if centred else 0.0
    scale = math.sqrt(sum((x - mean) ** 2 for x in stream) / len(stream) + eps)
    own_mean = sum(vector) / len(vector) if centred else 0.0
    terms = zip(vector, norm, unembedding, strict=True)
    return sum((x - own_mean) / scale * weight * u for x, weight, u in terms)


def whisper_weights():
    hf = tiny.hf_whisper("deep_decoder")
    layers = [
        {"attn": one.self_attn.out_proj, "cross_attn": one.encoder_attn.out_proj, "mlp": one.fc2}
        for one in hf.model.decoder.layers
    ]
    return layers, hf.model.decoder.layer_norm.weight, hf.proj_out.weight, True, 1e-5


def qwen2_weights():
    hf = tiny_qwen2.hf_qwen2_audio("unequal_heads")
    own = hf.model.language_model
    layers = [{"attn": one.self_attn.o_proj, "mlp": one.mlp.down_proj} for one in own.layers]
    return layers, own.norm.weight, hf.lm_head.weight, False, own.config.rms_norm_eps


@pytest.mark.parametrize("family", ["whisper", "qwen2"])
@torch.no_grad()
def test_heads_and_neurons_are_plain_products_with_the_references_weights(family, model, run):
    layers, norm, unembedding, centred, eps = (
        whisper_weights() if family == "whisper" else qwen2_weights()
    )
    if family == "qwen2":
        model, run = tiny_qwen2.hooked("unequal_heads"), tiny_qwen2.inputs([[61]])
        _, cache = model.run_with_cache(**run)
    else:
        _, cache = model.run_with_cache(*run)
    clip, pos = 0, 6

    def by_hand(vector):
        stream = cache[f"decoder.{len(layers) - 1}.hook_resid_post"][clip, pos].double().tolist()
        row = unembedding[TOKEN].double().tolist()
        weights = norm.double().tolist()
        return read_by_hand(vector.double().tolist(), stream, weights, row, centred, eps)

    def check(found, label, vector):
        value = found.values[found.labels.index(label), clip, pos].item()
        assert value == pytest.approx(by_hand(vector), rel=1e-4, abs=1e-6)

    heads = attribute(model, run, of="head", tokens=TOKEN)
    neurons = attribute(model, run, of="neuron", tokens=TOKEN)
    bias = 0
    for i, parts in enumerate(layers):
        for part, out in parts.items():
            bias = bias + (0 if out.bias is None else out.bias)
            if part == "mlp":
                post = cache[f"decoder.{i}.mlp.hook_post"][clip, pos]
                for n in (0, 17, len(post) - 1):
                    check(neurons, f"{i}_mlp_n{n}", post[n] * out.weight[:, n])
                continue
            z = cache[f"decoder.{i}.{part}.hook_z"][clip, pos]
            for h, head in enumerate(z):
                columns = out.weight[:, h * len(head) : (h + 1) * len(head)]
                check(heads, f"{i}_{part}_h{h}", columns @ head)
    check(heads, "bias", bias + torch.zeros(len(norm)))
    assert ("final_ln_bias" in heads.labels) == centred


@torch.no_grad()
def test_terms_are_those_of_the_stream_taken_apart(model, run, heads):
    _, cache = model.run_with_cache(*run)
    bias = (model.decoder_final_ln.bias @ model.W_U[:, TOKEN]).expand(2, 7)
    for found, ways in (
        (attribute(model, run, tokens=TOKEN), {}),
        (heads, {"per_head": True}),
    ):
        terms, labels = cache.decompose_resid(**ways)
        assert found.labels == [*labels, "final_ln_bias"]
        expected = torch.cat([cache.logit_attrs(terms, TOKEN), bias[None]])
        torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)


def test_a_layers_term_is_all_that_its_parts_wrote(model, run):
    layers = attribute(model, run, of="layer", tokens=TOKEN)
    parts = attribute(model, run, of="component", tokens=TOKEN)
    assert layers.labels == [
        "embed",
        "pos_embed",
        *(f"{i}_layer" for i in range(3)),
        "final_ln_bias",
    ]
    for i in range(3):
        own = [k for k, label in enumerate(parts.labels) if label.startswith(f"{i}_")]
        assert len(own) == 3
        torch.testing.assert_close(layers.values[2 + i], parts.values[own].sum(0))


def test_neurons_and_heads_sum_to_their_parts_but_for_the_biases(model, run, heads):
    whole, neurons = (attribute(model, run, of=of, tokens=TOKEN) for of in ("component", "neuron"))

    def total(found, *starts):
        rows = [i for i, label in enumerate(found.labels) if label.startswith(starts)]
        return found.values[rows].sum(0)

    attentions = total(heads, "0_attn", "1_attn", "2_attn", "0_c", "1_c", "2_c")
    mlps = total(neurons, "0_mlp", "1_mlp", "2_mlp")
    outs = total(whole, "0_", "1_", "2_")
    torch.testing.assert_close(attentions + mlps + total(heads, "bias"), outs)


# --- Ways of asking -------------------------------------------------------------------------------


def test_a_difference_is_one_of_logits(model, run, heads):
    other = torch.arange(7) + 20  # another one at each position
    found = attribute(model, run, of="head", tokens=torch.full((2, 1), TOKEN), versus=other)
    second = attribute(model, run, of="head", tokens=other)
    torch.testing.assert_close(found.values, heads.values - second.values)
    with torch.no_grad():
        logits = model(*run)
    expected = logits[..., TOKEN] - logits.gather(-1, other.expand(2, 7)[..., None])[..., 0]
    torch.testing.assert_close(found.logits, expected)
    assert found.targets.unique().tolist() == [TOKEN]
    assert torch.equal(found.versus, other.expand(2, 7))


def test_positions_change_no_number(model, run, heads):
    some = attribute(model, run, of="head", tokens=TOKEN, pos_slice=slice(1, None, 2))
    assert some.positions == [1, 3, 5]
    torch.testing.assert_close(some.values, heads.values[..., 1::2])
    last = attribute(model, run, of="head", tokens=TOKEN, pos_slice=-1)
    assert (last.positions, last.logits.shape) == ([6], (2, 1))


def at(found, label):
    return found.values[found.labels.index(label)]


@pytest.mark.parametrize("hook", ["hook_z", "hook_result"])
def test_an_ablated_heads_term_is_zero(model, run, heads, hook):
    def ablate(x, hook):
        x[:, :, 2] = 0.0

    hooks = iter([(f"decoder.2.cross_attn.{hook}", ablate)])
    found = attribute(model, run, of="head", tokens=TOKEN, fwd_hooks=hooks)
    assert not at(found, "2_cross_attn_h2").any()
    assert at(heads, "2_cross_attn_h2").abs().min() > 1e-4
    assert not torch.equal(at(found, "2_mlp_out"), at(heads, "2_mlp_out"))
    assert found.remainder.abs().max() < 1e-4


def test_what_hooks_do_between_parts_remains(model, run):
    def add(x, hook):
        return x + torch.linspace(-1, 1, 32)

    hooks = [("decoder.1.hook_resid_mid", add)]
    parts = attribute(model, run, tokens=TOKEN, fwd_hooks=hooks)
    layers = attribute(model, run, of="layer", tokens=TOKEN, fwd_hooks=hooks)
    assert parts.remainder.abs().min() > 1e-3
    assert layers.remainder.abs().max() < 1e-5
    with model.hooks(hooks):
        assert torch.equal(attribute(model, run, tokens=TOKEN).values, parts.values)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": "heads"}, "layer, component, head, neuron; got of='heads'"),
        ({"tokens": 64}, "tokens are ids from 0 to 63; got 64"),
        ({"versus": torch.tensor([3, -1, 3, 3, 3, 3, 3])}, "versus are ids .* got -1 to 3"),
        ({"tokens": torch.zeros(2, 6, dtype=torch.long)}, r"\[2, 7\] .*; got \[2, 6\]"),
        ({"pos_slice": 7}, "positions 0 to 6"),
    ],
)
def test_what_cannot_be_attributed_is_refused(model, run, options, says):
    with pytest.raises(LensError, match=says):
        attribute(model, run, **options)


def test_numbers_that_are_no_ids_are_refused(model, run, unchecked):
    with pytest.raises(LensError, match=r"versus are ids or a text; got torch\.float32"):
        attribute(model, run, versus=torch.tensor(3.7))


# --- Decodings ------------------------------------------------------------------------------------

NEEDED = {
    "layer": ["decoder.*.hook_resid_post"],
    "component": ["decoder.*.hook_*_out", "unembed.hook_out"],
    "head": ["decoder.*.hook_z", "decoder.*.hook_mlp_out", "unembed.hook_out"],
}


@pytest.fixture(scope="module")
def nano():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.mark.parametrize("of", list(NEEDED))
def test_a_decodings_terms_are_those_of_a_run_on_what_was_said(nano, of, unchecked):
    changes = [zero("decoder.2.cross_attn.1"), zero("decoder.1.mlp")]
    mel = nano.to_mel([bundle.clip(name).path for name in ("english", "german")])
    kept = ["hook_decoder_*embed", *NEEDED[of], "decoder_final_ln.hook_scale"]
    out = nano.generate(mel, language="en", names_filter=kept, interventions=changes)
    found = attribute(nano, out, of=of)
    whole = out.whole_tokens[:, :-1]
    forced = attribute(nano, (mel, whole), of=of, fwd_hooks=changes)
    real, n_prompt = found.real, len(nano.prompt(language="en"))
    assert real.sum(1).tolist() == [n_prompt + len(one.tokens) for one in out]
    assert torch.equal(found.targets[real], forced.targets[real])
    torch.testing.assert_close(found.values[:, real], forced.values[:, real], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.logits[real], forced.logits[real], rtol=1e-4, atol=1e-3)
    if of == "head":
        assert not at(found, "2_cross_attn_h1")[real].any()


def test_qwen2_audios_decoding():
    model, run = tiny_qwen2.hooked("gqa"), tiny_qwen2.inputs([[61]])
    kept = ["hook_decoder_embed", *NEEDED["head"], "decoder_final_ln.hook_scale"]
    out = model.generate(**run, names_filter=kept)
    found = attribute(model, out, of="head", tokens=TOKEN)
    whole = out.whole_tokens[:, :-1]
    forced = {**run, "tokens": whole, "attention_mask": torch.ones_like(whole)}
    expected = attribute(model, forced, of="head", tokens=TOKEN)
    real = found.real
    torch.testing.assert_close(
        found.values[:, real], expected.values[:, real], rtol=1e-4, atol=1e-4
    )


def test_what_a_decoding_did_not_keep_is_told(nano, unchecked):
    mel = nano.to_mel(bundle.clip("english").path)
    out = nano.generate(mel, language="en", names_filter="decoder.*.hook_resid_post")
    with pytest.raises(LensError, match=r"not hook_decoder_embed.*'decoder\.\*\.hook_z', 'dec"):
        attribute(nano, out, of="head")


# --- Tables, figures, files -----------------------------------------------------------------------


def test_the_table_tells_each_term_and_position_but_padding():
    model = tiny_qwen2.hooked("gqa")
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["right_padded"])
    found = attribute(model, run, of="head", versus=TOKEN)
    table = found.to_pandas()
    assert len(table) == len(found.labels) * int(run["attention_mask"].sum())
    query = "layer == 1 and part == 'attn' and unit == 2 and clip == 1 and position == 3"
    (row,) = table.query(query).to_dict("records")
    assert row["value"] == pytest.approx(at(found, "1_attn_h2")[1, 3].item())
    assert (row["term"], row["token"]) == ("1_attn_h2", run["tokens"][1, 3].item())
    assert (row["target"], row["versus"]) == (found.targets[1, 3].item(), TOKEN)
    embed = table[table["term"] == "embed"]
    assert embed["layer"].isna().all()
    assert (embed["part"] == "embed").all()
    assert (table[table["term"] == "0_mlp_out"]["part"] == "mlp").all()


def test_the_top_terms_are_the_largest_means(heads):
    table = heads.top(4)
    means = heads.values.mean((1, 2))
    order = np.argsort(-means.abs().numpy())[:4]
    assert table["term"].tolist() == [heads.labels[i] for i in order]
    np.testing.assert_allclose(table["value"], means[order])
    one = heads.top(1, clip=1, position=3)
    assert abs(one["value"][0]) == pytest.approx(heads.values[:, 1, 3].abs().max().item())
    assert len(heads.top(1000)) == len(heads.labels)


@pytest.mark.parametrize("of", OF)
def test_a_trained_models_figures_and_files(nano, of, tmp_path, unchecked):
    clip = bundle.clip("english")
    run = nano.to_inputs(clip.path, text=clip.text, language="en")
    found = attribute(nano, run, of=of, tokens=" green", versus=" red")
    assert found.texts[int(found.targets[0, 0])] == " green"
    for suffix in (".html", ".png", ".json") if of != "neuron" else (".png", ".json"):
        found.save(tmp_path / f"it{suffix}")
        assert (tmp_path / f"it{suffix}").stat().st_size > 500
    again = DirectAttribution.load(tmp_path / "it.json")
    pd.testing.assert_frame_equal(again.to_pandas(), found.to_pandas())
    assert torch.equal(again.logits, found.logits)
    chart = found.plot().to_dict()
    cells = chart["data"]["values"]
    if of == "head":
        expected = {
            (i, part, h): at(found, f"{i}_{part}_h{h}").mean().item()
            for i in range(4)
            for part in ("attn", "cross_attn")
            for h in range(6)
        }
        cells = {(cell["layer"], cell["attention"], cell["head"]): cell["logit"] for cell in cells}
        assert cells == pytest.approx(expected)
    else:
        n_pos = len(found.positions)
        terms = [cell["term"] for cell in cells[::n_pos]]
        assert len(terms) == (30 if of == "neuron" else len(found.labels))
        drawn = torch.tensor([cell["logit"] for cell in cells]).reshape(-1, n_pos)
        assert torch.equal(drawn, torch.stack([at(found, term)[0] for term in terms]))
        assert cells[4]["position"] == "4 My → green"


def test_plots_and_files_that_cannot_be(heads, tmp_path, nano):
    with pytest.raises(ResultError, match=r"clips 0 to 1 at positions 0 to 6.*clip=2"):
        heads.plot(clip=2)
    with pytest.raises(ResultError, match="position=9"):
        heads.top(position=9)
    with pytest.raises(ResultError, match=r"it\.txt"):
        heads.save(tmp_path / "it.txt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="no saved attribution"):
        DirectAttribution.load(tmp_path / "other.json")
    run = nano.to_inputs(bundle.clip("english").path, language="en")
    with pytest.raises(InputError, match=r"green red.*2 tokens"):
        attribute(nano, run, tokens=" green red")


def test_padded_results_survive_a_file(tmp_path):
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["left_padded"])
    found = attribute(tiny_qwen2.hooked(), run)
    found.save(tmp_path / "it.json")
    again = DirectAttribution.load(tmp_path / "it.json")
    torch.testing.assert_close(again.values, found.values, rtol=0, atol=0, equal_nan=True)
    assert again.versus is None
    found.save(tmp_path / "it.csv")
    assert len(pd.read_csv(tmp_path / "it.csv")) == len(found.to_pandas())
