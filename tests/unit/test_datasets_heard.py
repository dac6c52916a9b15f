"""What whisper-nano makes of the data sets: right where speech is clean, wrong where meant."""

from collections import Counter

import jaxtyping
import pytest
import torch

pytest.importorskip("espeakng_loader")
pytest.importorskip("jiwer")

from hooked_asr import HookedWhisper, datasets
from hooked_asr.manifests import read_clips
from hooked_asr.nano import clips
from hooked_asr.nano.evaluation.errors import loops, verdict
from hooked_asr.speech import wer


@pytest.fixture(scope="module", autouse=True)
def unchecked_decoding():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patch.setattr(clips, "_short_words", lambda language: ["eggs", "pigs", "bus", "soft"])
        yield


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


def heard(model, manifest):
    read = read_clips(manifest)
    texts = model.transcribe(model.to_mel([one.audio_path for one in read]), "en")
    return list(zip(read, texts, strict=True))


def test_clean_sentences_are_heard_as_they_are_said(model, tmp_path):
    pairs = heard(model, datasets.sentences(tmp_path, 12, progress=False))
    assert wer([clip.text for clip, _ in pairs], [text for _, text in pairs]) < 0.05


def test_an_unlikely_word_is_heard_as_its_neighbour(model, tmp_path):
    found = {"confused": Counter(), "likely": Counter(), "partner": Counter()}
    manifest = datasets.minimal_pairs(tmp_path, 24, speakers=1, progress=False)
    for clip, text in heard(model, manifest):
        verdict_ = verdict(text, clip.labels["word"], clip.labels["neighbour"])
        found[clip.labels["kind"]][verdict_] += 1
    assert found["confused"]["as neighbour"] >= 7
    assert found["likely"]["as said"] >= 7
    assert found["partner"]["as said"] >= 7


def test_chants_catch_it_in_loops(model, tmp_path):
    pairs = heard(model, datasets.repeated_words(tmp_path, 12, progress=False))
    assert sum(loops(text, said=clip.text) for clip, text in pairs) >= 3


def test_hiss_makes_it_invent_text_and_quiet_noise_does_not(model, tmp_path):
    manifest = datasets.noises(
        tmp_path, 12, kinds=("hiss", "brown"), levels=(-65.0,), progress=False
    )
    invented = Counter(clip.labels["kind"] for clip, text in heard(model, manifest) if text)
    assert invented["hiss"] >= 3
    assert not invented["brown"]
