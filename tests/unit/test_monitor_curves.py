"""Scores along transcripts, ROC curves, and how sure a model is, against obvious ways."""

import math

import numpy as np
import pytest
import soundfile
import tiny_qwen2_checkpoint
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from tiny_checkpoint import save_checkpoint

from hooked_asr import from_pretrained
from hooked_asr.generation import end_tokens
from hooked_asr.manifests import Clip
from hooked_asr.monitors import (
    Monitor,
    MonitorError,
    auc_within,
    plot_tokens,
    roc,
    scores_at,
    transcribe_clips,
)
from hooked_asr.probes import LinearProbe, ProbeError, ProbeOrigin, confidence_features

SITE = "decoder.1.hook_resid_post"


def made(family, folder):
    if family == "whisper":
        return from_pretrained(save_checkpoint(folder))
    return from_pretrained(tiny_qwen2_checkpoint.save_checkpoint(folder))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: made(family, folder / family) for family in ("whisper", "qwen2")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = []
    for i in range(5):
        soundfile.write(folder / f"{i}.wav", 0.1 * draw.normal(size=4000 + 2000 * i), 16_000)
        rows.append({"audio": str(folder / f"{i}.wav"), "id": f"{i}", "text": "me", "group": "a"})
    rows[3] |= {"text": None, "speech": "no"}
    rows[4] |= {"text": None}
    return [row | {"language": "en"} for row in rows]


def a_monitor(model, seed=0, **options):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(1, model.config.decoder.d_model, generator=draw)
    bias = torch.zeros(1)
    origin = ProbeOrigin(pool="last")
    return Monitor(LinearProbe(weights, bias, ["no", "yes"], "loops", SITE, origin), **options)


def alone(model, monitor, row):
    """One recording by itself."""
    if "language" in model.asked_by:
        return monitor.generate(model, row["audio"], language="en")
    return monitor.generate(model, **model.to_inputs(row["audio"], model.settled("")["prompt"]))


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["whisper", "qwen2"])
def test_scores_along_transcripts_are_those_of_the_recording_alone(models, clips, family):
    model = models[family]
    monitors = [a_monitor(model), a_monitor(model, seed=1)]
    found = transcribe_clips(model, clips, monitors, batch_size=2, progress=False)
    shown = [one.clip.id for one in found.heard if one.tokens][:2]
    assert len(shown) == 2
    drawn = []
    for place, (row, one) in enumerate(zip(clips, found.heard, strict=True)):
        for which, monitor in enumerate(monitors):
            own = [x for x in alone(model, monitor, row).scores[0].tokens if x is not None]
            every = (scores_at(found, share, which)[place] for share in (0.01, 0.5, 1.0))
            middle = own[max(1, round(len(own) / 2)) - 1] if own else None
            expected = (own[0], middle, own[-1]) if own else (None, None, None)
            assert tuple(every) == pytest.approx(expected, abs=1e-5)
            drawn += own if one.clip.id in shown and which == 1 else []
    cells = _cells(plot_tokens(found, shown, 1))
    assert [cell["score"] for cell in cells] == pytest.approx(drawn, abs=1e-5)
    assert cells[0]["said"] == f"{shown[0]}: me"


def _cells(chart):
    spec = chart.to_dict()
    return (spec.get("data") or spec["layer"][0]["data"])["values"]


@pytest.mark.usefixtures("unchecked")
def test_tokens_that_are_not_there_are_refused(models, clips):
    found = transcribe_clips(models["whisper"], clips, [a_monitor(models["whisper"])])
    with pytest.raises(MonitorError, match="no clip 'nine' was heard"):
        plot_tokens(found, ["nine"])
    with pytest.raises(MonitorError, match="1 monitors read along, from 0 on; got 1"):
        scores_at(found, 0.5, 1)
    with pytest.raises(MonitorError, match="share of the tokens"):
        scores_at(found, 0.0)


# --- ROC ------------------------------------------------------------------------------------------


def test_curve_and_area_are_scikit_learns():
    draw = np.random.default_rng(0)
    wrong = draw.random(200) < 0.4
    scores = (draw.normal(size=200) + wrong).round(1)  # with ties
    found = roc(scores, wrong, draw.integers(0, 9, 200))
    false, hits, thresholds = roc_curve(wrong, scores, drop_intermediate=False)
    assert found.auc.value == pytest.approx(roc_auc_score(wrong, scores))
    assert found.auc.low < found.auc.value < found.auc.high
    for share in (0.0, 0.05, 0.3, 1.0):
        place = np.flatnonzero(false <= share)[-1]
        alarms = found.at(share)
        assert alarms.threshold == thresholds[place]
        assert (alarms.hits.value, alarms.false_alarms.value) == (hits[place], false[place])
        assert found.alarms(alarms.threshold) == alarms
    lines = found.plot(roc(-scores, wrong, name="other")).to_dict()
    assert len(lines["layer"]) == 3


def test_the_area_within_a_noise_is_that_over_its_pairs():
    draw = np.random.default_rng(1)
    noise = draw.integers(0, 3, 120)
    wrong = draw.random(120) < np.array([0.1, 0.5, 0.9])[noise]
    loud = noise + draw.normal(size=120).round(1)
    won = pairs = 0.0
    for i in np.flatnonzero(wrong):
        for j in np.flatnonzero(~wrong):
            if noise[i] == noise[j]:
                won += (loud[i] > loud[j]) + (loud[i] == loud[j]) / 2
                pairs += 1
    found = auc_within(loud, wrong, noise, draw.integers(0, 9, 120))
    assert found.value == pytest.approx(won / pairs)
    assert found.low < found.value < found.high
    assert found.value < 0.65 < 0.75 < roc(loud, wrong).auc.value  # it tells noise, and no more
    assert auc_within(loud, wrong, [0] * 120).value == pytest.approx(roc(loud, wrong).auc.value)
    with pytest.raises(MonitorError, match="no wrong transcript shares it"):
        auc_within([0.1, 0.2], [True, False], ["a", "b"])
    with pytest.raises(MonitorError, match="2 scores are within as many; got 1"):
        auc_within([0.1, 0.2], [True, False], ["a"])


def test_curves_that_cannot_be_drawn_are_refused():
    for scores, wrong, groups, told in [
        ([0.1, 0.2], [True], None, "2 scores have as many"),
        ([0.1, math.nan], [True, False], None, "score at 1 is nan"),
        ([0.1, 0.2], [True, True], None, "2 of 2 transcripts are wrong"),
        ([0.1, 0.2], [True, False], ["a"], "got 2 and 1"),
    ]:
        with pytest.raises(MonitorError, match=told):
            roc(scores, wrong, groups)
    with pytest.raises(MonitorError, match="a share, from 0 to 1"):
        roc([0.1, 0.2], [True, False]).at(5.0)


# --- Confidence -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["whisper", "qwen2"])
def test_confidence_is_that_of_each_token_in_a_forward(models, clips, family):
    model = models[family]
    heard = [Clip(**{**row, "text": text}) for row, text in zip(_bare(clips), _TEXTS, strict=True)]
    found = confidence_features(model, heard, batch_size=2, progress=False)
    ends = end_tokens(model.generation_config)
    for clip, (logprob, ratio) in zip(heard, found, strict=True):
        prompt = model.to_inputs(clip.audio, **model.settled(clip.audio))
        n_prompt = prompt["tokens"].shape[1]
        whole = model.to_inputs(clip.audio, text=clip.text, **model.settled(clip.audio))
        logits = model(**whole)[0].detach().log_softmax(-1)
        said = whole["tokens"][0, n_prompt:].tolist()
        said = said[: next((i for i, one in enumerate(said) if one in ends), len(said))]
        steps = [logits[n_prompt - 1 + i, token] for i, token in enumerate(said)]
        steps.append(max(logits[n_prompt - 1 + len(said), end] for end in ends))
        assert logprob == pytest.approx(float(sum(steps)) / len(steps), abs=1e-5)
        assert ratio > 0
    assert found[1, 1] > found[0, 1]  # the one that repeats itself


def _bare(clips):
    return [{name: row[name] for name in ("audio", "id", "language")} for row in clips]


_TEXTS = ["me", " ".join(["ask"] * 5), "", "it", "no her"]


def test_confidence_is_of_transcripts(models, clips):
    with pytest.raises(ProbeError, match=r"has no text to force.*what the model heard"):
        confidence_features(models["whisper"], [clips[4]], progress=False)
