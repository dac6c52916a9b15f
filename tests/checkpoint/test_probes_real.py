"""Probes of a trained encoder, on speakers that they were not fitted to.

The first run encodes some 500 windows of 30 s, two minutes on one core; activations are then kept
in pytest's cache.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from hooked_asr import HookedWhisper, load_audio
from hooked_asr.probes import LinearProbe, ProbeOrigin, fit_probes, log_mel_features, random_weights
from hooked_asr.timing import encoder_length
from hooked_asr.weights.fingerprint import fingerprint

pytestmark = pytest.mark.long

TAKES = range(3)  # of each digit by each speaker
RANDOM_TAKES = range(1)


def site(layer):
    return f"encoder.{layer}.hook_resid_post"


@pytest.fixture(scope="module")
def model(refit):
    return HookedWhisper.from_pretrained(refit, dtype=torch.float32)


@pytest.fixture(scope="module")
def kept(request, model):
    """Activations averaged over a clip's own positions: computed once, then read."""
    folder = request.config.cache.mkdir("hooked_asr_probes")

    def kept(name, clips, layers, of=model):
        path = folder / f"{name}-{len(clips)}-{fingerprint(of)[:16]}.npz"
        if not path.exists():
            rows = [averages(of, clip, layers) for clip in clips]
            np.savez(path, **{site: np.stack([row[site] for row in rows]) for site in rows[0]})
        return dict(np.load(path))

    return kept


@torch.no_grad()
def averages(model, clip, layers):
    samples = load_audio(clip)[: 30 * 16_000]
    own = encoder_length(-(-len(samples) // 160))
    stop = f"encoder.{max(layers) + 1}"
    _, cache = model.run_with_cache(
        model.to_mel(samples), stop_at=stop, names_filter=[site(layer) for layer in layers]
    )
    return {name: activation[0, :own].mean(0).numpy() for name, activation in cache.items()}


@pytest.fixture(scope="module")
def speech(shared):
    folder = shared / "audio" / "librispeech_train_clean_100"
    clips = sorted(folder.glob("*.flac"))
    with (folder / "speakers.csv").open(encoding="utf-8") as file:
        sex = {row["speaker"]: row["sex"] for row in csv.DictReader(file)}
    speakers = [clip.name.split("-")[0] for clip in clips]
    return clips, speakers, [sex[one] for one in speakers]


def test_a_speakers_sex_is_told(model, kept, speech, tmp_path):
    clips, speakers, sexes = speech
    features = kept("speech", clips, [0, 1])
    origin = ProbeOrigin.of(model, "mean")
    found = fit_probes(features, sexes, groups=speakers, origin=origin, progress=False)
    best = found.scores[found.best()]["accuracy"]
    assert len(set(speakers)) == len(found.rows) == 251
    assert best.value >= 0.97
    assert best.low > 0.94
    chance = found.baselines["shuffled"][found.best()]["accuracy"]
    assert chance.low < 0.5 < chance.high < 0.65
    found.probe().save(tmp_path / "sex.safetensors")
    probe = LinearProbe.load(tmp_path / "sex.safetensors")
    probe.check(model)
    told = probe.predict(torch.from_numpy(features[probe.site]))
    assert (told == sexes).mean() > 0.99


def test_speech_is_told_from_other_sounds(kept, speech, shared):
    clips, speakers, _ = speech
    sounds = sorted((shared / "audio" / "nonspeech" / "esc10").glob("*/*.ogg"))[::2]
    heard, other = kept("speech", clips, [0, 1]), kept("sounds", sounds, [0, 1])
    features = {name: np.concatenate([heard[name], other[name]]) for name in heard}
    labels = ["speech"] * len(clips) + ["sound"] * len(sounds)
    recordings = [clip.stem.rsplit("-", 1)[0] for clip in sounds]  # of which several were cut
    found = fit_probes(features, labels, groups=speakers + recordings, progress=False)
    assert found.scores[found.best()]["accuracy"].value >= 0.98
    assert found.scores[found.best()]["balanced_accuracy"].value >= 0.98


def test_digits_are_told_of_a_speaker_left_out(model, kept, shared):
    def spoken(takes):
        clips = sorted((shared / "audio" / "digits_fsdd").glob("*.wav"))
        clips = [clip for clip in clips if int(clip.stem.split("_")[2]) in takes]
        return clips, *zip(*(Path(clip).stem.split("_")[:2] for clip in clips), strict=True)

    clips, digits, speakers = spoken(TAKES)
    found = fit_probes(
        kept("digits", clips, [3]),
        digits,
        groups=speakers,
        folds=len(set(speakers)),
        baselines={"log-mel": log_mel_features(model, clips, progress=False)},
        progress=False,
    )
    best = found.best()
    assert found.scores[best]["accuracy"].value >= 0.90
    assert 0.3 < found.baselines["log-mel"][best]["accuracy"].value < 0.65
    assert found.baselines["shuffled"][best]["accuracy"].value < 0.2
    clips, digits, speakers = spoken(RANDOM_TAKES)
    blank = random_weights(model, how="permuted")
    features = kept("random digits", clips, [3], blank)
    found = fit_probes(features, digits, groups=speakers, folds=4, progress=False)
    assert 0.15 < found.scores[found.best()]["accuracy"].value < 0.65
