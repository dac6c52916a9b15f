"""Sweeps and interventions where audio is a prefix, against loops over the reference model."""

from itertools import product

import pytest
import torch
from tiny_qwen2 import hf_inputs, hf_qwen2_audio, hooked, inputs

from hooked_asr.interventions import Site, replace, zero
from hooked_asr.patching import SitesError, SweepError, attentions, components, grid, heads, sweep

LAYOUT = "gqa"  # four heads in each stack; in the decoder two share their keys and values
A, B = 11, 23  # two tokens
BATCHES = {
    "several_clips": {"frames": [[40, 61]]},
    "left_padded": {"frames": [[61, 100], [], [40]]},
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


@pytest.fixture(scope="module")
def hf():
    return hf_qwen2_audio(LAYOUT)


@pytest.fixture(scope="module")
def model():
    return hooked(LAYOUT)


def two_runs(batch):
    """Two runs with the same tokens, of which the second hears something else."""
    clean = inputs(**BATCHES[batch])
    return clean, clean | {"mel": inputs(**BATCHES[batch], seed=1)["mel"]}


def difference(logits):
    return logits[:, -1, A] - logits[:, -1, B]


def swept(model, clean, sites, **options):
    return sweep(model, clean=clean, sites=sites, metric=difference, progress=False, **options)


# --- The slow, obvious loop on the reference ------------------------------------------------------

LAYERS = {"encoder": "model.audio_tower.layers.{}", "decoder": "model.language_model.layers.{}"}
# What each of a layer's parts writes leaves this module of the reference's layer.
WRITES = {
    "encoder": {"attn": "self_attn.out_proj", "mlp": "fc2", "resid_post": ""},
    "decoder": {"attn": "self_attn.o_proj", "mlp": "mlp.down_proj", "resid_post": ""},
}
MODULES = {
    (stack, layer, part): f"{LAYERS[stack].format(layer)}.{path}".rstrip(".")
    for stack in WRITES
    for layer in range(2)
    for part, path in WRITES[stack].items()
}


@torch.no_grad()
def hf_run(hf, run, module, before=None, behind=None):
    """The reference's logits, with what enters or leaves one of its modules edited."""

    def enter(module, args):
        return (before(args[0].clone()), *args[1:]) if before else None

    def leave(module, args, out):
        if behind is None:
            return None
        if isinstance(out, tuple):
            return (behind(out[0].clone()), *out[1:])
        return behind(out.clone())

    module = hf.get_submodule(module)
    with module.register_forward_pre_hook(enter), module.register_forward_hook(leave):
        return hf(**hf_inputs(run)).logits


def new_values(hf, reference, side):
    """What each operation puts in place of a tensor at one side of a module."""
    theirs = {}
    for module in MODULES.values():
        hf_run(hf, reference, module, **{side: lambda x, at=module: theirs.setdefault(at, x)})
    return {
        "replace": lambda x, module: theirs[module],
        "interpolate": lambda x, module: x.lerp(theirs[module], 0.3),
        "zero": lambda x, module: torch.zeros_like(x),
        "mean": lambda x, module: theirs[module].mean((0, 1)).expand_as(x),
        "own mean": lambda x, module: x.mean(1, keepdim=True).expand_as(x),
    }


OPTIONS = {
    "replace": {"operation": "replace"},
    "interpolate": {"operation": "replace", "alpha": 0.3},
    "zero": {"operation": "zero"},
    "mean": {"operation": "mean"},
    "own mean": {"operation": "mean", "reference": None},
}
every_operation = pytest.mark.parametrize("operation", OPTIONS)


def slow(hf, run, places, groups, new, side):
    """The metric with `new` at each place, a module and a slice of it, and group of positions."""
    values = []
    for (module, mine), group in product(places, groups):

        def edit(x, module=module, mine=mine, group=group):
            made = new(x, module)
            for row, position in product(range(len(x)), group or range(x.shape[1])):
                x[row, position, mine] = made[row, position, mine]
            return x

        values.append(float(difference(hf_run(hf, run, module, **{side: edit})).mean()))
    return torch.tensor(values)


def assert_same(result, expected):
    assert expected.std() > 1e-4
    # Rows run together, and in a batch products round otherwise.
    torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=1e-5)


@every_operation
@every_batch
@pytest.mark.parametrize("stack", WRITES)
def test_heads_equal_a_loop_over_the_reference_model(hf, model, stack, batch, operation):
    clean, reference = two_runs(batch)
    d_head = model.config.stack(stack).d_head
    places = [
        (MODULES[stack, layer, "attn"], slice(head * d_head, (head + 1) * d_head))
        for layer, head in product(range(2), range(4))
    ]
    new = new_values(hf, reference, "before")[operation]
    for positions, groups in ((None, [None]), ([4, range(2, 9)], [[4], list(range(2, 9))])):
        options = {"reference": reference, **OPTIONS[operation]}
        result = swept(model, clean, heads(f"{stack}.attn", positions), **options)
        expected = slow(hf, clean, places, groups, new, "before")
        assert_same(result, expected)


@every_operation
@every_batch
@pytest.mark.parametrize("stack", WRITES)
def test_components_equal_a_loop_over_the_reference_model(hf, model, stack, batch, operation):
    clean, reference = two_runs(batch)
    everything = slice(None)
    places = [
        (MODULES[stack, layer, part], everything)
        for layer, part in product(range(2), ("attn", "mlp", "resid_post"))
    ]
    new = new_values(hf, reference, "behind")[operation]
    for positions, groups in ((None, [None]), ([4, range(2, 9)], [[4], list(range(2, 9))])):
        options = {"reference": reference, **OPTIONS[operation]}
        result = swept(model, clean, components(stack, positions=positions), **options)
        expected = slow(hf, clean, places, groups, new, "behind")
        assert_same(result, expected)


@every_batch
def test_clean_and_reference_are_the_reference_models(hf, model, batch):
    clean, reference = two_runs(batch)
    result = swept(model, clean, components("encoder", "mlp"), reference=reference)
    with torch.no_grad():
        for value, run in ((result.clean, clean), (result.reference, reference)):
            assert value == float(difference(hf(**hf_inputs(run)).logits).mean())


@every_batch
def test_the_encoders_stream_carries_all_that_is_heard(model, batch):
    clean, reference = two_runs(batch)
    result = swept(model, clean, components("encoder", "resid_post"), reference=reference)
    assert result.values.flatten().tolist() == pytest.approx([result.reference] * 2, abs=1e-5)
    assert result.clean != pytest.approx(result.reference, abs=1e-2)


def test_to_replace_needs_clips_of_one_length(model):
    with pytest.raises(SweepError, match=r"clean has 22 tokens and reference 17.* of one length"):
        swept(model, inputs([[61]]), heads("decoder.attn"), reference=inputs([[40]]))


# --- Which sites there are ------------------------------------------------------------------------


def test_there_are_no_heads_of_cross_attention(model):
    config = model.config
    assert attentions(config) == ["encoder.attn", "decoder.attn"]
    says = r"decoder has no cross_attn; heads are those of 'encoder\.attn' or 'decoder\.attn'"
    for sites in (heads("decoder.cross_attn"), heads("decoder.cross_attn", "each")):
        with pytest.raises(SitesError, match=says):
            sites.check(config)
        with pytest.raises(SitesError, match=says):
            swept(model, inputs(), sites)


@pytest.mark.parametrize("part", ["cross_attn", "resid_mid_cross"])
def test_there_are_no_parts_of_cross_attention(model, part):
    with pytest.raises(SitesError, match=f"decoder has no part '{part}'; there are attn, mlp, res"):
        components("decoder", part).check(model.config)


def test_the_default_parts_are_what_a_layer_writes_and_the_stream(model):
    for stack in ("encoder", "decoder"):
        axes = components(stack).grid(model.config, n_pos=9).axes
        assert axes["component"] == ["attn", "mlp", "resid_post"]


def test_a_check_makes_no_site(model, monkeypatch):
    """At each position there may be millions: the decoder of the published model has 8192."""

    def fail(*args):
        raise AssertionError("a site was made")

    monkeypatch.setattr(grid, "Site", fail)
    heads("decoder.attn", "each").check(model.config)
    components("decoder", positions="each").check(model.config)


def test_each_position_is_one_of_the_decoders_or_of_the_encoders(model):
    clean = inputs([[61]])
    result = swept(model, clean, components("decoder", "mlp", "each"))
    assert result.axes["position"] == list(range(clean["tokens"].shape[1]))
    result = swept(model, clean, components("encoder", "mlp", "each"))
    assert result.axes["position"] == list(range(50))


# --- Positions that are audio ---------------------------------------------------------------------


@torch.no_grad()
def test_silencing_a_clip_in_the_decoder_is_silencing_it_in_the_reference(hf, model):
    run = inputs([[40, 61]])
    clean = model(**run)
    for span in model.audio_positions(run):
        where = list(span.positions)

        def silence(x, where=where):
            x[:, where] = 0
            return x

        site = Site("decoder.1.hook_resid_pre", positions=span.positions)
        ours = model.run_with_hooks(**run, fwd_hooks=[zero(site)])
        expected = hf_run(hf, run, LAYERS["decoder"].format(1), before=silence)
        assert torch.equal(ours, expected)
        assert not torch.allclose(ours[:, -1], clean[:, -1], atol=1e-3)


@torch.no_grad()
def test_a_clip_put_in_anothers_positions_is_heard_in_its_place(model):
    clean, other = two_runs("several_clips")
    _, cache = model.run_with_cache(**other)
    for span in model.audio_positions(clean):
        mel = clean["mel"].clone()
        mel[span.clip] = other["mel"][span.clip]
        expected = model(**clean | {"mel": mel})
        for hook in ("hook_decoder_embed", "decoder.0.hook_resid_pre"):
            site = Site(hook, positions=span.positions)
            ours = model.run_with_hooks(**clean, fwd_hooks=[replace(site, cache)])
            assert torch.equal(ours, expected)


@torch.no_grad()
def test_a_head_at_one_moment_of_a_clip(hf, model):
    run = inputs([[61]])
    (span,) = model.audio_positions(run)
    position = span.at(0.3)
    assert position == span.positions[7]

    def silence(z):
        z[:, position, 12:24] = 0
        return z

    ours = model.run_with_hooks(**run, fwd_hooks=[zero(f"decoder.0.attn.1@{position}")])
    expected = hf_run(hf, run, MODULES["decoder", 0, "attn"], before=silence)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, model(**run))
