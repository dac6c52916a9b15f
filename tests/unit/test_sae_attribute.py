"""Attribution to features, against gradients taken by hand and whole runs one by one."""

import numpy as np
import pytest
import soundfile
import tiny
import tiny_qwen2
import torch
from sae_tiny import made
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.interventions import replace
from hooked_asr.patching import AttributionError, SweepError
from hooked_asr.patching.metrics import log_prob, logit, logit_diff
from hooked_asr.sae import SAEError
from hooked_asr.sae.attribution.attribute import attribute_features
from hooked_asr.sae.attribution.result import FeatureAttribution
from hooked_asr.sae.edits import ablate_features, scale_features

SITES = [
    "encoder.0.hook_resid_post",
    "decoder.0.hook_resid_post",
    "decoder.1.cross_attn.hook_z",
]
METRIC = logit_diff(5, 9, pos=-1)


@pytest.fixture(scope="module")
def model():
    return tiny.hooked()


def one_clip(model, seed=0):
    return tiny.inputs(model, batch=1, seed=seed)


def measured(model, run, hooks, metric=METRIC):
    with torch.no_grad():
        return float(metric(model.run_with_hooks(*run, fwd_hooks=hooks)).mean())


def by_hand(model, sae, run, metric=METRIC):
    """The activation at the site `[pos d]`, its features, and the metric's gradient there."""
    kept = {}

    def keep(x, hook):
        kept["x"] = x.detach().clone().requires_grad_()
        return kept["x"]

    with torch.enable_grad():
        value = metric(model.run_with_hooks(*run, fwd_hooks=[(sae.site, keep)])).mean()
        (gradient,) = torch.autograd.grad(value, kept["x"])
    x, gradient = (one.detach()[0].flatten(1) for one in (kept["x"], gradient))
    return x, sae.encode(x), gradient


@pytest.mark.parametrize("site", SITES)
def test_effects_are_products_with_the_gradient_and_add_up(model, site):
    run, sae = one_clip(model), made(model, site)
    found = attribute_features(sae, model, run, METRIC, top_exact=0, progress=False)
    x, features, gradient = by_hand(model, sae, run)
    expected = -features * (gradient @ sae.directions.T)
    effects = torch.zeros_like(expected)
    effects[found.positions, found.features] = torch.tensor(found.effects)
    torch.testing.assert_close(effects, expected, rtol=1e-4, atol=1e-5)
    bias = sae.decode(torch.zeros_like(features))
    left_out = x - features @ sae.directions - bias
    expected_errors = -(left_out * gradient).sum(-1)
    torch.testing.assert_close(torch.tensor(found.errors), expected_errors, rtol=1e-4, atol=1e-5)
    assert found.total == pytest.approx(float(((bias - x) * gradient).sum()), rel=1e-4, abs=1e-5)
    assert found.clean == pytest.approx(measured(model, run, []), abs=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_each_effect_is_the_slope_of_taking_a_little_of_the_feature_out(model, site):
    run, sae = one_clip(model), made(model, site)
    found = attribute_features(sae, model, run, METRIC, top_exact=0, progress=False)
    sums = found.by_feature().set_index("feature")["effect"]
    for feature, effect in sums.head(4).items():
        less, more = (
            measured(model, run, [scale_features(sae, int(feature), by=by)]) for by in (0.99, 1.01)
        )
        assert (less - more) / 0.02 == pytest.approx(effect, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("site", SITES)
def test_exact_effects_are_those_of_ablation(model, site):
    run, sae = one_clip(model), made(model, site)
    found = attribute_features(sae, model, run, METRIC, top_exact=5, progress=False)
    assert list(found.exact) == found.by_feature()["feature"].head(5).tolist()
    for feature, change in found.exact.items():
        alone = measured(model, run, [ablate_features(sae, feature)]) - measured(model, run, [])
        assert change == pytest.approx(alone, abs=2e-5)
    assert found.agreement.table["exact"].tolist() == list(found.exact.values())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("other", [False, True])
def test_integrated_effects_add_up_to_what_the_whole_site_does(model, site, other):
    run, sae = one_clip(model), made(model, site)
    against = (one_clip(model, seed=3)[0], run[1]) if other else None
    found = attribute_features(
        sae, model, run, METRIC, method="integrated", against=against, steps=60, top_exact=0,
        progress=False,
    )  # fmt: skip
    _, cache = model.run_with_cache(*(against or run), names_filter=site)
    goes_to = cache[site]
    if not other:
        flat = goes_to.flatten(2) if goes_to.ndim == 4 else goes_to
        bias = sae.decode(torch.zeros(*flat.shape[:2], sae.n_features))
        goes_to = bias.reshape(goes_to.shape)
    whole = measured(model, run, [replace(site, goes_to)]) - found.clean
    assert found.total == pytest.approx(whole, rel=0.02, abs=2e-3)


def test_against_another_run_features_become_what_they_are_there(model):
    site = "encoder.0.hook_resid_post"
    run, sae = one_clip(model), made(model, site)
    against = (one_clip(model, seed=3)[0], run[1])
    found = attribute_features(
        sae, model, run, METRIC, against=against, top_exact=3, progress=False
    )
    x, features, gradient = by_hand(model, sae, run)
    there, reference, _ = by_hand(model, sae, against)
    expected = (reference - features) * (gradient @ sae.directions.T)
    effects = torch.zeros_like(expected)
    effects[found.positions, found.features] = torch.tensor(found.effects)
    torch.testing.assert_close(effects, expected, rtol=1e-4, atol=1e-5)
    assert found.total == pytest.approx(float(((there - x) * gradient).sum()), rel=1e-4, abs=1e-5)
    feature = next(iter(found.exact))
    moved = (reference - features)[:, feature, None] * sae.directions[feature]
    alone = measured(model, run, [(site, lambda x, hook: x + moved)]) - found.clean
    assert found.exact[feature] == pytest.approx(alone, abs=2e-5)


def test_an_autoencoder_that_normalises_is_attributed_in_the_model_s_own_units(model):
    site = "decoder.0.hook_resid_post"
    run, sae = one_clip(model), made(model, site, normalize_activations="layer_norm")
    found = attribute_features(sae, model, run, METRIC, top_exact=2, progress=False)
    feature, change = next(iter(found.exact.items()))
    alone = measured(model, run, [ablate_features(sae, feature)]) - found.clean
    assert change == pytest.approx(alone, abs=2e-5)
    less, more = (measured(model, run, [scale_features(sae, feature, by)]) for by in (0.99, 1.01))
    effect = found.by_feature().set_index("feature")["effect"][feature]
    assert (less - more) / 0.02 == pytest.approx(effect, rel=0.02, abs=1e-3)


def test_a_model_that_reads_audio_among_its_tokens():
    model = tiny_qwen2.hooked()
    inputs = tiny_qwen2.inputs()
    sae = made(model, "decoder.0.hook_resid_post")
    found = attribute_features(sae, model, inputs, logit(5), top_exact=3, progress=False)
    with torch.no_grad():
        clean = float(logit(5)(model(**inputs)))
    feature, change = next(iter(found.exact.items()))
    with torch.no_grad():
        edited = model.run_with_hooks(fwd_hooks=[ablate_features(sae, feature)], **inputs)
    assert change == pytest.approx(float(logit(5)(edited)) - clean, abs=2e-5)


def test_what_is_found_is_kept_and_drawn(model, tmp_path):
    run, sae = one_clip(model), made(model, "encoder.0.hook_resid_post")
    found = attribute_features(sae, model, run, METRIC, top_exact=3, progress=False)
    found.save(tmp_path / "found.json")
    back = FeatureAttribution.load(tmp_path / "found.json")
    assert back.to_pandas().equals(found.to_pandas())
    assert back.exact == found.exact
    table = found.to_pandas()
    assert table["effect"].sum() == pytest.approx(found.total)
    assert table["end"].iloc[0] - table["start"].iloc[0] == pytest.approx(0.02)
    found.save(tmp_path / "found.csv")
    found.save(tmp_path / "found.html")


def test_what_cannot_be_attributed_is_refused(model):
    run, sae = one_clip(model), made(model, "encoder.0.hook_resid_post")
    with pytest.raises(SAEError, match="'plain' and 'integrated'"):
        attribute_features(sae, model, run, METRIC, method="shapley", progress=False)
    with pytest.raises(SAEError, match="one clip; the run has 2"):
        attribute_features(sae, model, tiny.inputs(model), METRIC, progress=False)
    with pytest.raises(AttributionError, match="cannot be differentiated"):
        attribute_features(
            sae, model, run, lambda logits: logits.argmax(-1).float(), progress=False
        )
    longer = tiny.inputs(model, batch=1, n_pos=9)
    with pytest.raises(SweepError, match="7 tokens and reference 9"):
        attribute_features(sae, model, run, log_prob(5), against=longer, progress=False)


def test_the_command_line_attributes(run, tmp_path):
    whisper = HookedWhisper.from_pretrained(save_checkpoint(tmp_path / "tiny", "multilingual"))
    made(whisper, "decoder.0.hook_resid_post").save(tmp_path / "sae")
    draw = np.random.default_rng(0)
    soundfile.write(tmp_path / "clip.wav", draw.normal(0, 0.1, 8000), 16000)
    words = ["sae", "attribute", tmp_path / "sae", tmp_path / "clip.wav", "--model", whisper.name]
    more = ["--text", "ask not", "--language", "en", "--top", 4, "--out", tmp_path / "out"]
    done = run(*words, "--word", "ask", *more)
    assert done.code == 0, done.err
    found = FeatureAttribution.load(tmp_path / "out" / "clip-features.json")
    assert found.metric.startswith("log_prob(ask")
    assert len(found.exact) == 4
    assert any(line.startswith("left out (error)") for line in done.lines)
    refused = run(*words, "--metric", "wer", *more)
    assert refused.code == 2
    assert "no gradient" in refused.err
