"""Recordings made as loud as each other, backwards, and noisy: against the samples themselves."""

import numpy as np
import pytest
import soundfile

from hooked_asr import datasets
from hooked_asr.audio import load_audio
from hooked_asr.datasets import DatasetError
from hooked_asr.manifests import read_clips
from hooked_asr.records import RecordsError
from hooked_asr.sounds import level

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    found = []
    for i in range(3):
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.02 * (i + 1) * draw.normal(size=4000 + 100 * i), 16_000)
        own = {"text": "a word", "language": "en", "group": f"s{i}", "sex": "male"}
        found.append({"audio": str(path), "id": f"a/{i}", **own, "speech": "yes"})
    return found


def samples(clip):
    return load_audio(clip.audio_path).numpy()


def test_backwards_is_the_same_the_other_way_round(rows, tmp_path):
    made = read_clips(datasets.altered(rows, tmp_path, backwards=True, **QUIET))
    for row, clip in zip(rows, made, strict=True):
        before = load_audio(row["audio"]).numpy()
        assert np.abs(samples(clip)[::-1] - before).max() < 1e-4
        assert (clip.text, clip.group, clip.language) == (None, row["group"], "en")
        assert clip.labels == {"sex": "male", "speech": "no", "kind": "reversed"}
    assert made[1].id == "a_1-backwards"


def test_all_are_as_loud_as_each_other(rows, tmp_path):
    made = read_clips(datasets.altered(rows, tmp_path, level=-40.0, **QUIET))
    for row, clip in zip(rows, made, strict=True):
        heard = samples(clip)
        assert 20 * np.log10(np.sqrt(np.mean(heard**2))) == pytest.approx(-40, abs=0.01)
        assert np.corrcoef(heard, load_audio(row["audio"]).numpy())[0, 1] > 0.9999
        assert (clip.text, clip.labels["speech"], clip.labels["level"]) == (
            "a word",
            "yes",
            "-40.0",
        )


def test_noise_lies_as_far_below_the_speech_as_asked(rows, tmp_path):
    asked = {"noises": ("clean", "white", "babble"), "snr": 5.0, **QUIET}
    made = read_clips(datasets.in_noise(rows, tmp_path / "a", **asked))
    assert [one.labels["noise"] for one in made[:3]] == ["clean", "white 5 dB", "babble 5 dB"]
    for clean, *noisy in zip(made[::3], made[1::3], made[2::3], strict=True):
        for one in noisy:
            added = samples(one) - samples(clean)
            apart = 20 * np.log10(level(samples(clean)) / np.sqrt(np.mean(added**2)))
            assert apart == pytest.approx(5.0, abs=0.05)
            assert (one.text, one.group) == (clean.text, clean.group)
    again = read_clips(datasets.in_noise(rows, tmp_path / "b", **asked))
    assert all((samples(a) == samples(b)).all() for a, b in zip(made, again, strict=True))
    with pytest.raises(RecordsError, match="snr"):
        datasets.in_noise(rows, tmp_path / "a", **{**asked, "snr": 6.0})


def test_what_cannot_be_made_is_refused(rows, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(800), 16_000)
    for error, match, call in (
        (DatasetError, "level=, or backwards", lambda out: datasets.altered(rows, out)),
        (DatasetError, "clipped", lambda out: datasets.altered(rows, out, level=-2.0)),
        (DatasetError, "got .'rain'", lambda out: datasets.in_noise(rows, out, ("rain",))),
    ):
        with pytest.raises(error, match=match):
            call(tmp_path / "out")
    with pytest.warns(UserWarning, match="silent"), pytest.raises(DatasetError, match="is silent"):
        datasets.altered([silent], tmp_path / "out", level=-30.0, **QUIET)
