"""A monitor of the bundled model: transcripts gone wrong are told, of voices it never heard."""

import random

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import roc_auc_score

from hooked_asr import HookedWhisper
from hooked_asr.manifests import read_clips
from hooked_asr.monitors import Monitor
from hooked_asr.nano.clips import Part, Plan, draw_sentence
from hooked_asr.nano.corpus import speak_set
from hooked_asr.nano.voices import draw_voice
from hooked_asr.probes import ProbeOrigin, probe_task
from hooked_asr.sounds import add_noise, noise
from hooked_asr.speech import normaliser, wer

pytestmark = pytest.mark.long

SITE = "decoder.3.hook_resid_post"
LEVELS = (20.0, 10.0, -9.0, -12.0, -14.0)  # dB of speech over noise
N_FITTED, N_HEARD = 80, 50


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


def planned(n, held_out, draw):
    plans = []
    for _ in range(n):
        text = draw_sentence(draw, "en", held_out).texts["en"]
        plans.append(
            Plan("sentence", (Part(text, text, draw_voice(draw, "en", held_out)),), (0.2,))
        )
    return plans


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """English sentences in noise; the last ones by other voices, and never trained on."""
    folder, draw = tmp_path_factory.mktemp("clips"), random.Random(0)
    hiss = np.random.default_rng(0)
    plans = planned(N_FITTED, False, draw) + planned(N_HEARD, True, draw)
    rows = []
    for i, clip in enumerate(speak_set(plans, seed=0)):
        kind, snr = draw.choice(("white", "pink", "hum", "clicks")), draw.choice(LEVELS)
        speech = clip.samples.astype(np.float32) / 32768
        mixed = add_noise(speech, noise(kind, len(speech), hiss), snr)
        soundfile.write(folder / f"{i}.wav", mixed / max(1.0, np.abs(mixed).max()), 16_000)
        voice = clip.plan.voice
        row = {"audio": str(folder / f"{i}.wav"), "text": clip.text, "language": "en"}
        rows.append(row | {"group": voice.speaker, "noise": "loud" if snr < 0 else "low"})
    return rows[:N_FITTED], rows[N_FITTED:]


QUICK = {"folds": 5, "n_permutations": 2, "n_resamples": 100, "progress": False, "baselines": ()}


def test_wrong_transcripts_are_told_of_voices_that_it_never_heard(model, clips, tmp_path):
    fitted, heard = clips
    found = probe_task("hallucination", model, fitted, out=tmp_path, layers=[3], worst=0.3, **QUICK)
    assert found.result.origin == ProbeOrigin.of(model, "last")
    found.result.probe().save(tmp_path / "probe.safetensors")
    monitor = Monitor.load(tmp_path / "probe.safetensors", model)
    assert {row["group"] for row in fitted}.isdisjoint(row["group"] for row in heard)
    monitored = monitor.generate(model, [row["audio"] for row in heard], language="en")
    wrong, scores, flagged = [], [], []
    for row, said, one in zip(heard, monitored.said, monitored.scores, strict=True):
        errors = wer(row["text"], said.text, normaliser("en"))
        if errors == 0 or errors >= 0.5:
            wrong.append(errors > 0)
            scores.append(one.final)
            flagged.append(one.flagged)
    assert 10 <= sum(wrong) <= len(wrong) - 10
    auc = roc_auc_score(wrong, scores)
    print(f"hallucination: AUC {auc:.3f} on {len(wrong)} clips, {sum(wrong)} of them wrong")
    assert auc >= 0.85
    assert np.mean(np.array(wrong) == flagged) >= 0.75


def test_noise_is_told_before_a_word_is_said(model, clips, tmp_path):
    fitted, heard = clips
    found = probe_task("noise", model, fitted, out=tmp_path, layers=[1], **QUICK)
    monitor = Monitor(found.result.probe(), alarm="loud")
    paths = [one.audio_path for one in read_clips(heard)]
    scores = monitor.generate(model, paths, language="en", max_new_tokens=1).scores
    loud = [row["noise"] == "loud" for row in heard]
    assert roc_auc_score(loud, [one.final for one in scores]) >= 0.9
    assert np.mean(np.array(loud) == [one.flagged for one in scores]) >= 0.85
