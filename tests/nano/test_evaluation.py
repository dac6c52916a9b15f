"""whisper-nano's test sets, what is measured on them, and the card, on an untrained model."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("jiwer")
pytest.importorskip("sklearn")

from hooked_asr import HookedWhisper
from hooked_asr.nano import clips
from hooked_asr.nano.card import write_card
from hooked_asr.nano.evaluation import (
    MissingPackageError,
    evaluate,
    loop,
    loops,
    needed,
    verdict,
    word_error_rate,
)
from hooked_asr.nano.evaluation import sets as test_sets
from hooked_asr.nano.evaluation.probes import Question, accuracy
from hooked_asr.nano.evaluation.sets import TestClip, TestSets, build_test_sets, with_noise
from hooked_asr.nano.pairs import PAIRS
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.record import RecordError, TrainingRecord
from hooked_asr.nano.training import untrained
from hooked_asr.nano.voices import HELD_OUT_SPEAKERS, draw_voice

SMALL = Recipe(d_model=16, n_layers=1, n_heads=2, n_tokens=24)
HELD_OUT = {name for names in HELD_OUT_SPEAKERS.values() for name in names}


@pytest.fixture(scope="module", autouse=True)
def few_words() -> Iterator[None]:
    """To gather the whole vocabulary takes seconds where every call's types are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "_short_words", lambda language: ["no", "vino", "hallo"])
        yield


@pytest.fixture(scope="module")
def sets() -> TestSets:
    return build_test_sets(2, pairs=PAIRS[:1])


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    return untrained(SMALL).eval()


@pytest.fixture(scope="module")
def evaluation(model: HookedWhisper, sets: TestSets) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hooked_asr.nano.evaluation.build_test_sets", lambda *args: sets)
        return evaluate(model, clips_per_language=2, progress=False)


def every_clip(sets: TestSets) -> list[TestClip]:
    return [*sets.clean, *sets.pairs, *sets.nonspeech, *sets.repetition]


@pytest.mark.long
def test_two_builds_are_the_same(sets: TestSets) -> None:
    again = build_test_sets(2, pairs=PAIRS[:1])
    for one, other in zip(every_clip(sets), every_clip(again), strict=True):
        assert (one.kind, one.text, one.voice) == (other.kind, other.text, other.voice)
        np.testing.assert_array_equal(one.samples, other.samples)


def test_test_clips_are_held_out_and_fit(sets: TestSets) -> None:
    found = every_clip(sets)
    assert all(0 < clip.seconds <= 6 for clip in found)
    assert {clip.voice.speaker for clip in found if clip.voice} <= HELD_OUT
    assert len({clip.text for clip in sets.clean}) == len(sets.clean) == 6
    assert {clip.kind for clip in sets.repetition} == {"chant", "code_switch", "cut off", "stuck"}
    assert all(not clip.text for clip in sets.nonspeech)


def test_confused_clips_say_the_unlikely_word(sets: TestSets) -> None:
    texts = {clip.kind: clip.text for clip in reversed(sets.pairs)}
    assert texts == {
        "confused": "I would like some white lice, please.",
        "likely": "I would like some white rice, please.",
        "partner": "The dog has lice in its fur.",
    }


@pytest.mark.parametrize("kind", ["white", "babble"])
def test_noise_is_as_loud_as_asked(sets: TestSets, kind: str) -> None:
    for clean, noisy in zip(sets.clean, with_noise(sets.clean, kind, 5.0), strict=True):
        voiced = clean.samples[np.abs(clean.samples) > 1e-4]
        noise = noisy.samples - clean.samples
        snr = 10 * np.log10(np.square(voiced).mean() / np.square(noise).mean())
        assert snr == pytest.approx(5, abs=0.1)
        assert noisy.kind == f"{kind} 5 dB"


def test_a_stuck_clip_says_its_words_as_often_as_they_come(sets: TestSets) -> None:
    assert all(loop(clip.text) >= 4 for clip in sets.repetition if clip.kind == "stuck")


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 0),
        ("A cat.", 1),
        ("No, no, NO!", 3),
        ("the cat and the cat and the cat and", 3),
        ("one two three four one two three four", 2),
        ("one two three four five one two three four five", 1),
        ("yes no yes no no", 2),
    ],
)
def test_loop_counts_repeats_in_a_row(text: str, times: int) -> None:
    assert loop(text) == times


def test_a_chant_written_as_it_was_said_is_no_loop() -> None:
    chant = "No, " * 8
    assert not loops(chant, said=chant)
    assert not loops(chant + "no, no", said=chant)
    assert loops(chant + "no, no, no", said=chant)


def test_case_and_punctuation_are_no_errors() -> None:
    assert word_error_rate(["¿Quiere té, señor?"], ["quiere té señor"]) == 0
    assert word_error_rate(["One, two."], [""]) == 1
    assert word_error_rate(["One two", "three four"], ["one too", "three four."]) == 0.25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("White lice, please.", "as said"),
        ("White Rice.", "as neighbour"),
        ("White ice.", "other"),
        ("Rice and lice.", "other"),
    ],
)
def test_verdicts(text: str, expected: str) -> None:
    assert verdict(text, word="lice", neighbour="rice") == expected


def test_a_probe_is_scored_on_speakers_that_it_was_not_trained_on() -> None:
    rng = random.Random(0)
    spoken = [_clip(draw_voice(rng, "en", held_out=True)) for _ in range(80)]
    speakers = [clip.voice.speaker for clip in spoken if clip.voice]
    alone = np.eye(len(HELD_OUT))[[sorted(HELD_OUT).index(one) for one in speakers]]
    sexes = [clip.voice.sex for clip in spoken if clip.voice]
    told = np.array([[float(sex == "male")] for sex in sexes])
    assert accuracy(told, Question(spoken, sexes)) == 1
    leaked = accuracy(alone, Question(spoken, sexes))
    assert leaked is not None
    assert leaked < 0.8


def test_an_evaluation_is_whole_and_can_be_written(evaluation: dict[str, Any]) -> None:
    assert json.loads(json.dumps(evaluation)) == evaluation
    assert set(evaluation["wer"]) == {
        "clean",
        *(f"{kind} {snr:g} dB" for kind in test_sets.NOISY for snr in test_sets.SNRS),
    }
    for name in ("language", "translation", "timestamps", "no_speech"):
        assert evaluation[name]
    assert set(evaluation["pairs"]) == {"confused", "likely", "partner"}
    assert set(evaluation["invented"]) == set(test_sets.LEVELS)
    assert set(evaluation["loops"]) == {"clean", "chant", "code_switch", "cut off", "stuck"}
    assert set(evaluation["probes"]["noise"]["accuracy"]) == {"front end", "layer 0"}
    shares = evaluation["pairs"]["confused"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)


def test_the_card_says_what_was_measured(evaluation: dict[str, Any], tmp_path: Any) -> None:
    measured = evaluation | {
        "wer": evaluation["wer"] | {"clean": {"en": 0.0123, "es": 1.0, "de": 0.0}}
    }
    curve = [
        {"step": 20 * i, "loss": 9 - 0.1 * i, "phones": 3.0, "seconds": 72.0 * i} for i in range(50)
    ]
    TrainingRecord(SMALL, {"torch": "2.13"}, curve).save(tmp_path)
    write_card(tmp_path / "CARD.md", measured, TrainingRecord.load(tmp_path))
    card = (tmp_path / "CARD.md").read_text(encoding="utf-8")
    assert "| clean | 1.2 % (within 5 %) | 100.0 % (**over** 8 %) | 0.0 % (within 8 %) |" in card
    assert "| 980 | 4.100 | 3.000 |" in card
    assert "1.0 hours" in card
    assert "| torch | 2.13 |" in card
    assert "None" not in card
    figures = re.findall(r"!\[.+?\]\((.+?)\)", card)
    assert len(figures) == 2
    assert all((tmp_path / name).stat().st_size > 5_000 for name in figures)


def test_a_checkpoint_without_its_record_is_told(tmp_path: Any) -> None:
    with pytest.raises(RecordError, match="is missing"):
        TrainingRecord.load(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(RecordError, match="is no record"):
        TrainingRecord.load(tmp_path)


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'hooked_asr\[nano\]'"):
        needed("no_such_package")


def _clip(voice: Any) -> TestClip:
    return TestClip("clean", np.zeros(1600, np.float32), "", voice.language, voice)
