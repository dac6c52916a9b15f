"""Edits by features: against SAELens's own encode and decode, position by position."""

import json
from itertools import product

import pytest
import tiny_qwen2
import torch
from sae_tiny import made
from tiny import hooked, inputs

from hooked_asr import KVCache
from hooked_asr.interventions import InterventionError, from_json, to_json
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.metrics import log_prob
from hooked_asr.sae import SAEError, SparseAutoencoder
from hooked_asr.sae.edits import (
    ablate_features,
    add_features,
    clamp_features,
    scale_features,
    splice,
)
from hooked_asr.sae.saelens import saelens

AUDIO, HEADS, TEXT = "encoder.1.hook_resid_post", "decoder.0.attn.hook_z", "decoder.1.hook_mlp_out"
N_FEATURES = 24


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return hooked()


def of_architecture(kind, normalised="none", d_in=32):
    """One of SAELens's architectures with drawn weights, none of which is of length one."""
    lens, own = saelens(), {}
    if kind in ("topk", "abstopk"):
        own = {"k": 5, "rescale_acts_by_decoder_norm": True}
    elif kind == "matching_pursuit":
        own = {"residual_threshold": 1.0, "max_iterations": 4}
    name = {"topk": "TopK", "abstopk": "AbsTopK", "jumprelu": "JumpReLU"}.get(kind) or "".join(
        word.capitalize() for word in kind.split("_")
    )
    config = getattr(lens, f"{name}SAEConfig")(
        d_in=d_in, d_sae=N_FEATURES, normalize_activations=normalised, **own
    )
    sae = getattr(lens, f"{name}SAE")(config)
    generator = torch.Generator().manual_seed(3)
    for weight in sae.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    if kind == "jumprelu":
        sae.threshold.fill_(0.3)
    if kind == "matching_pursuit":
        sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
    return sae


EDITS = {
    "add": (lambda sae: add_features(sae, {3: 2.0, 7: -1.5}, 0.5), {3: "+1", 7: "-0.75"}),
    "scale": (lambda sae: scale_features(sae, [0, 5, 9], 3.0), {0: "*3", 5: "*3", 9: "*3"}),
    "clamp": (lambda sae: clamp_features(sae, {2: 1.5, 8: 0.0}), {2: "=1.5", 8: "=0"}),
    "half-way": (lambda sae: clamp_features(sae, {2: 1.5}, 0.5), {2: "~1.5"}),
    "ablate": (lambda sae: ablate_features(sae, range(12)), dict.fromkeys(range(12), "*0")),
}


def changed(features, changes):
    """One position's features, changed as it is written, one by one."""
    new = features.clone()
    for number, change in changes.items():
        sign, size = (change[0], float(change[1:])) if change[0] in "=*~" else ("+", float(change))
        old = float(features[number])
        new[number] = {"+": old + size, "*": old * size, "=": size, "~": (old + size) / 2}[sign]
    return new


def by_hand(sae, x, changes):
    """`x + decode(changed) - decode(as they were)`, of one vector at a time."""
    rows = []
    for vector in x.reshape(-1, 1, sae.cfg.d_in):
        features = sae.encode(vector)
        before = sae.decode(features)
        sae.encode(vector)  # decode has used up the norm
        rows.append(vector + sae.decode(changed(features[0], changes)[None]) - before)
    return torch.cat(rows).reshape(x.shape)


def cached(model, site, hooks=(), batch=None):
    batch = dict(zip(("mel", "tokens"), inputs(model), strict=True)) if batch is None else batch
    return model.run_with_cache(**batch, names_filter=[site], fwd_hooks=hooks)[1][site]


KINDS = [
    *product(("standard", "gated", "topk", "jumprelu", "abstopk"), ("none",)),
    ("matching_pursuit", "none"),
    *product(("standard", "topk"), ("layer_norm", "constant_norm_rescale")),
]


@pytest.mark.parametrize(("kind", "normalised"), KINDS)
@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_what_saelens_decodes(model, kind, normalised, edit):
    sae = of_architecture(kind, normalised)
    make, changes = EDITS[edit]
    for site in (AUDIO, HEADS):
        ours = SparseAutoencoder(sae, site)
        x = cached(model, site)
        expected = by_hand(sae, x, changes)
        assert (x != expected).any()
        got = cached(model, site, [make(ours)])
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "normalised"), KINDS)
def test_splice_is_what_saelens_reconstructs(model, kind, normalised):
    sae = of_architecture(kind, normalised)
    for site in (AUDIO, HEADS):
        x = cached(model, site)
        got = cached(model, site, [splice(SparseAutoencoder(sae, site))])
        assert torch.allclose(got, sae(x.reshape(-1, 32)).reshape(x.shape), atol=1e-4)


def bits(x):
    return x.contiguous().view(torch.int32)


def test_nothing_changes_where_no_feature_does(model):
    sae = made(model, AUDIO)
    idle = [
        add_features(sae, {1: 2.0}, strength=0.0),
        add_features(sae, {1: 0.0}),
        scale_features(sae, [1, 2], 1.0),
        clamp_features(sae, {1: 9.0}, strength=0.0),
        splice(sae, keep_error=True),
    ]
    x = cached(model, AUDIO)
    signed = x.where(x.abs() > 0.3, torch.tensor(-0.0))  # an addition of 0 would turn the sign

    def put(_, hook):
        return signed

    assert (bits(signed) == bits(torch.tensor(-0.0))).any()
    for one in idle:
        assert torch.equal(bits(cached(model, AUDIO, [(AUDIO, put), one])), bits(signed)), one
    off = sae.encode(signed)[..., 4] == 0
    assert 0.1 < off.double().mean() < 0.9
    same = (
        bits(cached(model, AUDIO, [(AUDIO, put), ablate_features(sae, 4)])) == bits(signed)
    ).all(-1)
    assert torch.equal(same, off)


def test_positions_seconds_and_other_sites(model):
    sae = made(model, AUDIO)
    x = cached(model, AUDIO)
    moved = (cached(model, AUDIO, [add_features(sae, {1: 2.0}, positions=[2, 5])]) != x).any(-1)
    assert moved.nonzero()[:, 1].tolist() == [2, 5, 2, 5]
    moved = (cached(model, AUDIO, [splice(sae, seconds=(0.1, 0.14))]) != x).any(-1)
    assert moved[0].nonzero()[:, 0].tolist() == [5, 6]
    elsewhere = "encoder.0.hook_resid_pre"
    edit = add_features(sae, {1: 2.0}).at(elsewhere)
    expected = cached(model, elsewhere) + 2 * sae.directions[1]
    assert torch.allclose(cached(model, elsewhere, [edit]), expected, atol=1e-5)


def test_values_in_units_of_the_features(model):
    sae = made(model, AUDIO)
    units = torch.arange(1.0, N_FEATURES + 1)
    for make in (add_features, clamp_features):
        got = cached(model, AUDIO, [make(sae, {9: 0.5, 3: 2.0}, units=units)])
        assert torch.equal(got, cached(model, AUDIO, [make(sae, {9: 5.0, 3: 8.0})]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    half = hooked(dtype=dtype)
    sae = made(half, AUDIO)
    x = cached(half, AUDIO)
    wide = by_hand(sae.sae, x.float(), EDITS["clamp"][1])
    got = cached(half, AUDIO, [EDITS["clamp"][0](sae)])
    assert got.dtype == dtype
    # The two sums may fall on either side of a rounding: one unit in the last place.
    assert torch.allclose(got.float(), wide, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    assert (got == wide.to(dtype)).double().mean() > 0.98


def test_an_autoencoder_in_half_precision(model):
    sae = made(model, AUDIO).to(torch.bfloat16)
    x = cached(model, AUDIO)
    got = cached(model, AUDIO, [add_features(sae, {1: 2.0})])
    assert got.dtype == torch.float32
    assert torch.allclose(got, x + 2 * sae.directions[1].float(), atol=2e-2)


# --- Wherever interventions go --------------------------------------------------------------------


def edits_of(model):
    return [
        scale_features(made(model, AUDIO), range(8), 4.0, seconds=(0.0, 0.5)),
        splice(made(model, TEXT)),
        clamp_features(made(model, HEADS), {1: 6.0, 2: -3.0}, positions=slice(2, None)),
        add_features(made(model, TEXT, normalize_activations="layer_norm"), {5: 4.0}),
    ]


def in_steps(model, tokens, audio, hooks, first=3):
    """Logits of a prompt of `first` tokens at once, then of one token at a time."""
    past = KVCache(model.config.decoder.n_layers, capacity=tokens.shape[1])
    parts = tokens.split([first, *[1] * (tokens.shape[1] - first)], dim=1)
    with model.hooks(hooks):
        return torch.cat([model.decode(part, audio, past=past) for part in parts], dim=1)


def test_cached_decoding_is_one_forward(model):
    mel, tokens = inputs(model)
    audio = model.encode(mel)
    plain = model.decode(tokens, audio)
    for edit in edits_of(model)[1:]:
        whole = model.run_with_hooks(tokens=tokens, audio=audio, fwd_hooks=[edit])
        assert (whole - plain).abs().max() > 0.01
        assert torch.allclose(in_steps(model, tokens, audio, [edit]), whole, atol=1e-4), edit


def test_rows_are_runs_of_their_own(model):
    mel, tokens = inputs(model, batch=1)
    rows = [[one] for one in edits_of(model)]
    metric = log_prob(7)
    got = run_rows(model, {"mel": mel, "tokens": tokens}, rows, metric).values
    expected = [float(metric(model.run_with_hooks(mel, tokens, fwd_hooks=row))) for row in rows]
    assert torch.allclose(got, torch.tensor(expected), atol=1e-4)
    assert len(set(got.tolist())) == len(rows)


def test_qwen2_audio():
    model = tiny_qwen2.hooked("gqa")
    batch = tiny_qwen2.inputs([[40], [61]])
    for site in ("encoder.0.hook_mlp_out", "decoder.1.attn.hook_z", "decoder.0.hook_resid_post"):
        sae = made(model, site)
        x = cached(model, site, batch=batch)
        for name in ("scale", "add"):
            make, changes = EDITS[name]
            got = cached(model, site, [make(sae)], batch=batch)
            assert torch.allclose(got, by_hand(sae.sae, x, changes), rtol=1e-4, atol=1e-4)
    edit = scale_features(made(model, "decoder.1.attn.hook_z"), range(24), 3.0)
    model.generate(**batch, interventions=[edit], max_new_tokens=3)


# --- What cannot be -------------------------------------------------------------------------------


def test_refusals(model):
    sae = made(model, AUDIO)
    with pytest.raises(SAEError, match="features 0 to 23; asked for 24"):
        add_features(sae, {24: 1.0})
    with pytest.raises(SAEError, match="asked for none"):
        ablate_features(sae, [])
    with pytest.raises(SAEError, match="24 features take as many units; got 3"):
        clamp_features(sae, {1: 1.0}, units=torch.ones(3))
    with pytest.raises(InterventionError, match="32 dimensions does not fit"):
        cached(model, "encoder.0.mlp.hook_post", [splice(sae).at("encoder.0.mlp.hook_post")])
    lens = saelens()
    other = lens.TemporalSAE(lens.TemporalSAEConfig(d_in=32, d_sae=64, n_heads=1))
    with pytest.raises(SAEError, match="architecture 'temporal' does not decode position by pos"):
        splice(SparseAutoencoder(other, AUDIO))


def test_as_text_it_names_the_dictionary(model):
    first, again, other = (made(model, AUDIO, seed=seed) for seed in (0, 0, 1))
    told = [to_json([add_features(sae, {1: 2.0})]) for sae in (first, again, other)]
    assert told[0] == told[1] != told[2]
    (entry,) = json.loads(told[0])
    assert (entry["action"], entry["features"], entry["values"]) == ("add_features", [1], [2.0])
    with pytest.raises(InterventionError, match="no action 'add_features'"):
        from_json(told[0])
