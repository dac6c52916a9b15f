"""Data sets: the same twice, resumed, refused, read back; what every recording is said to be."""

import json
import re
from collections import Counter
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

from hooked_asr import datasets
from hooked_asr.datasets import build as building
from hooked_asr.datasets.synthesis import EspeakSynthesis
from hooked_asr.manifests import read_clips
from hooked_asr.nano import clips as nano_clips
from hooked_asr.nano.voices import HELD_OUT_SPEAKERS, TRAINING_SPEAKERS
from hooked_asr.sae.reading.alignments import read_alignments

NOISES = ("clean", "white", "babble")
HELD_OUT = {name for names in HELD_OUT_SPEAKERS.values() for name in names}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Drawing many sentences is slow where every call's types are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patch.setattr(nano_clips, "_short_words", lambda language: ["no", "vino", "hallo"])
        patch.setattr(building, "_PART", 3)
        yield


def speak(folder, n=8):
    return datasets.sentences(folder, n, noises=NOISES, snrs=(5.0,), progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return speak(tmp_path_factory.mktemp("sentences"))


def content(manifest):
    """All bytes of what is told, and all samples."""
    clips = read_clips(manifest)
    told = [(manifest.parent / name).read_bytes() for name in ("words.json", "phones.json")]
    heard = b"".join(soundfile.read(one.audio_path, dtype="int16")[0].tobytes() for one in clips)
    return manifest.read_bytes(), *told, heard


def recorded(manifest):
    return json.loads((manifest.parent / "dataset.json").read_text())


# --- Again ----------------------------------------------------------------------------------------


def test_two_builds_are_the_same(made, tmp_path):
    again = speak(tmp_path)
    assert content(again) == content(made)
    assert recorded(again) == recorded(made)


def test_another_seed_says_something_else(made, tmp_path):
    other = datasets.sentences(tmp_path, 3, seed=1, progress=False)
    assert [one.text for one in read_clips(other)] != [one.text for one in read_clips(made)][::3]
    assert recorded(other)["sha256"] != recorded(made)["sha256"]


def test_what_was_killed_goes_on(made, tmp_path, monkeypatch):
    make = EspeakSynthesis.make

    def killed(self, items, part):
        if part == 1:
            raise KeyboardInterrupt
        return make(self, items, part)

    monkeypatch.setattr(EspeakSynthesis, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        speak(tmp_path)
    assert not (tmp_path / "manifest.csv").exists()
    parts = []
    monkeypatch.setattr(
        EspeakSynthesis,
        "make",
        lambda self, items, part: parts.append(part) or make(self, items, part),
    )
    assert content(speak(tmp_path)) == content(made)
    assert parts == [1, 2]


def test_what_was_removed_is_made_anew_and_the_rest_is_left(made, tmp_path, monkeypatch):
    speak(tmp_path)
    for name in ("manifest.csv", "phones.json", "audio/en-0006-white-5dB.flac"):
        (tmp_path / name).unlink()
    kept = (tmp_path / "audio/en-0000.flac").stat().st_mtime_ns
    assert content(speak(tmp_path)) == content(made)
    assert (tmp_path / "audio/en-0000.flac").stat().st_mtime_ns == kept
    monkeypatch.setattr(EspeakSynthesis, "make", None)  # all there: nothing is said
    assert content(speak(tmp_path)) == content(made)


def test_other_arguments_are_refused_by_name(made):
    with pytest.raises(datasets.OtherDatasetError, match=r"another set: n was 8, now 9\. Ask"):
        speak(made.parent, n=9)
    with pytest.raises(datasets.DatasetError, match=r"builder was 'sentences', now 'noises'"):
        datasets.noises(made.parent, 8, progress=False)


def test_a_folder_where_nothing_came_of_it_is_free(tmp_path):
    own = {"long": ["a very long word indeed " * 12]}
    with pytest.raises(datasets.DatasetError, match=r"the longest clip is 6 s"):
        datasets.semantic_categories(tmp_path, own, speakers=1, progress=False)
    assert datasets.noises(tmp_path, 1, progress=False).is_file()


def test_a_manifest_of_someone_elses_is_left_alone(tmp_path):
    (tmp_path / "manifest.csv").write_text("audio\nmine.wav\n")
    with pytest.raises(datasets.DatasetError, match="was not made so"):
        datasets.noises(tmp_path, 1, progress=False)
    assert (tmp_path / "manifest.csv").read_text() == "audio\nmine.wav\n"


def test_a_record_of_another_speaker_is_not_mixed_with_new_ones(tmp_path, monkeypatch):
    datasets.sentences(tmp_path, 2, progress=False)
    (tmp_path / "audio" / "en-0001.flac").unlink()
    make = EspeakSynthesis.make
    monkeypatch.setattr(
        EspeakSynthesis, "make", lambda self, items, part: make(EspeakSynthesis(9), items[:1], part)
    )
    with pytest.raises(datasets.DatasetError, match="made anew they are others"):
        datasets.sentences(tmp_path, 2, progress=False)


# --- What is told ---------------------------------------------------------------------------------


def test_every_sentence_is_there_in_every_noise(made):
    clips = read_clips(made)
    assert Counter(one.labels["noise"] for one in clips) == {
        "clean": 8,
        "white 5 dB": 8,
        "babble 5 dB": 8,
    }
    assert [one.id for one in clips[:3]] == ["en-0000", "en-0000-white-5dB", "en-0000-babble-5dB"]
    said = {}
    for one in clips:
        said.setdefault(one.id[:7], set()).add((one.text, one.group, one.labels["accent"]))
    assert len(said) == 8
    assert all(len(same) == 1 for same in said.values())
    assert len({one.text for one in clips}) == 8
    assert {one.group for one in clips} <= HELD_OUT
    assert {(one.language, one.labels["speech"], one.labels["kind"]) for one in clips} == {
        ("en", "yes", "sentence")
    }


def test_noise_is_as_far_below_the_speech_as_its_label_says(made):
    sounds = {one.id: soundfile.read(one.audio_path)[0] for one in read_clips(made)}
    for name in ("en-0000", "en-0007"):
        clean = sounds[name]
        for kind in NOISES[1:]:
            noisy = sounds[f"{name}-{kind}-5dB"]
            scale = noisy @ clean / (clean @ clean) if np.abs(noisy).max() > 0.98 else 1.0
            noise = noisy / scale - clean
            snr = 10 * np.log10(np.square(clean[clean != 0]).mean() / np.square(noise).mean())
            assert snr == pytest.approx(5, abs=0.3)


def test_times_are_taken_where_features_are_read(made):
    clips = read_clips(made)
    for kind in ("words", "phones"):
        aligned = read_alignments(made.parent / f"{kind}.json", clips)
        assert len(aligned) == len(clips)
        for one in clips:
            seconds = soundfile.info(one.audio_path).duration
            assert all(0 <= a.start < a.end <= seconds + 0.001 for a in aligned[one.id])
    spoken = read_alignments(made.parent / "words.json", clips)
    for one in clips:
        assert [word.label for word in spoken[one.id]] == re.findall(r"\w+", one.text)


def test_the_record_tells_how_it_was_made(made):
    record = recorded(made)
    assert record["recipe"]["builder"] == "sentences"
    assert record["recipe"]["noises"] == list(NOISES)
    assert record["recipe"]["seed"] == 0
    assert "out" not in record["recipe"]
    assert record["clips"] == 24
    assert record["versions"]["hooked_asr"]
    sounds = [soundfile.info(one.audio_path).duration for one in read_clips(made)]
    assert record["seconds"] == pytest.approx(sum(sounds), abs=0.01)


# --- The builders ---------------------------------------------------------------------------------


def test_minimal_pairs_are_said_by_one_voice_both_ways(tmp_path):
    clips = read_clips(datasets.minimal_pairs(tmp_path, 24, speakers=1, progress=False))
    assert len(clips) == 24
    for one in clips:
        labels = one.labels
        said = re.findall(r"\w+", one.text.lower())
        assert labels["word"] in said
        assert labels["neighbour"] not in said
        assert set(labels["pair"].split("/")) == {labels["word"], labels["neighbour"]}
    confused = [one for one in clips if one.labels["kind"] == "confused"]
    assert len(confused) == 8
    likely = {
        (one.labels["pair"], one.labels["frame"]): one
        for one in clips
        if one.labels["kind"] == "likely"
    }
    for one in confused:
        other = likely[one.labels["pair"], one.labels["frame"]]
        assert (one.group, one.labels["accent"]) == (other.group, other.labels["accent"])
        meant = re.sub(rf"\b{one.labels['word']}\b", one.labels["neighbour"], one.text, flags=re.I)
        assert meant.lower() == other.text.lower()


def test_words_of_categories_are_each_said_by_several(tmp_path):
    asked = ["fruit", "animal"]
    manifest = datasets.semantic_categories(tmp_path, asked, 3, speakers=4, progress=False)
    clips = read_clips(manifest)
    by_word = {}
    for one in clips:
        by_word.setdefault((one.labels["category"], one.labels["word"]), []).append(one)
    assert Counter(category for category, _ in by_word) == {"fruit": 3, "animal": 3}
    for (_, word), own in by_word.items():
        assert len({one.group for one in own}) == len(own) == 4
        assert {one.text.lower() for one in own} == {f"{word}."}


def test_categories_of_ones_own(tmp_path):
    own = {"tool": ["hammer", "saw"], "verb": ["saw", "ran"]}
    clips = read_clips(datasets.semantic_categories(tmp_path, own, speakers=1, progress=False))
    found = {(one.labels["category"], one.labels["word"]) for one in clips}
    assert found == {("tool", "hammer"), ("tool", "saw"), ("verb", "ran")}


def test_chants_say_one_word_as_often_as_told(tmp_path):
    clips = read_clips(datasets.repeated_words(tmp_path, 6, ("en", "de"), progress=False))
    assert [one.language for one in clips] == ["en", "de"] * 3
    for one in clips:
        words = re.findall(r"\w+", one.text.lower())
        assert len(set(words)) == 1
        assert 8 <= len(words) == int(one.labels["times"]) <= 14
        assert soundfile.info(one.audio_path).duration <= 6


def test_a_speaker_switches_to_another_language(tmp_path):
    clips = read_clips(datasets.code_switching(tmp_path, 6, progress=False))
    pairs = {(one.language, one.labels["language_2"]) for one in clips}
    assert len(pairs) == 6
    words = read_alignments(tmp_path / "words.json", clips)
    for one in clips:
        assert soundfile.info(one.audio_path).duration <= 6
        switch = float(one.labels["switch"])
        starts = [word.start for word in words[one.id]]
        assert min(starts) < switch - 0.3
        assert min(abs(start - switch) for start in starts) < 0.15


def test_fragments_end_in_a_word_or_stick(tmp_path):
    clips = read_clips(datasets.fragments(tmp_path, 8, progress=False))
    assert Counter(one.labels["kind"] for one in clips) == {"cut off": 4, "stuck": 4}
    words = read_alignments(tmp_path / "words.json", clips)
    for one in clips:
        seconds = soundfile.info(one.audio_path).duration
        if one.labels["kind"] == "cut off":
            assert words[one.id][-1].end == pytest.approx(seconds, abs=0.001)
            assert [word.label for word in words[one.id][:-1]] == (one.text or "").split()
        else:
            sound, rate = soundfile.read(one.audio_path)
            times = int(one.labels["times"])
            assert 4 <= times <= 8
            assert repeats(sound, rate) >= times - 1


def repeats(sound, rate):
    """How often a clip's end is what came a stretch (of 0.3 to 0.6 s) before, to the sample."""
    end = sound[-rate // 10 :]
    for length in range(int(0.29 * rate), int(0.61 * rate)):
        n, stop = 0, len(sound) - length
        while stop >= len(end) and np.array_equal(sound[stop - len(end) : stop], end):
            n, stop = n + 1, stop - length
        if n:
            return n
    return 0


def test_noises_are_as_loud_as_told(tmp_path):
    clips = read_clips(datasets.noises(tmp_path, 20, progress=False))
    assert len({one.labels["kind"] for one in clips}) == 10
    for one in clips:
        sound = soundfile.read(one.audio_path)[0]
        level = 10 * np.log10(np.square(sound).mean())
        # Quantising to 16 bits adds a hundredth of what -75 dBFS is; babble peaks are not cut.
        assert level == pytest.approx(float(one.labels["level"]), abs=0.3)
        assert (one.text, one.labels["speech"]) == (None, "no")
        assert "sex" not in one.labels


def test_voices_are_as_asked(tmp_path):
    how = {"accents": ["scottish"], "held_out": False, "sex": "male", "progress": False}
    clips = read_clips(datasets.sentences(tmp_path, 6, **how))
    assert {one.labels["accent"] for one in clips} == {"scottish"}
    assert {one.labels["sex"] for one in clips} == {"male"}
    assert {one.group for one in clips} <= set(TRAINING_SPEAKERS["male"])


@pytest.mark.parametrize(
    ("builder", "asked", "said"),
    [
        ("sentences", {"languages": ("fr",)}, r"languages are en, es, de"),
        ("sentences", {"noises": ("rain",)}, r"noises are clean, white"),
        ("sentences", {"noises": ("white",), "snrs": ()}, r"with an SNR"),
        ("sentences", {"n": 0}, "nothing to make"),
        ("sentences", {"sex": "robot"}, "sex is female or male"),
        ("sentences", {"accents": ["martian"]}, "no accent 'martian'; there are american"),
        ("sentences", {"vocabulary": "closed"}, "the vocabulary is nano or open"),
        ("sentences", {"voices": ["a"]}, "those of a program"),
        ("sentences", {"tts": "say {out}"}, "names the voices"),
        ("minimal_pairs", {"kinds": ("odd",)}, "kinds are some of confused"),
        ("semantic_categories", {"categories": ["fruit", "cars"]}, r"no categories \['cars'\]"),
        ("semantic_categories", {"frame": "word"}, r"frame with \{\}"),
        ("repeated_words", {"times": (9, 8)}, "the fewest first"),
        ("code_switching", {"languages": ("en",)}, "takes two languages"),
        ("fragments", {"kinds": ()}, "kinds are some of cut off"),
        ("noises", {"kinds": ("rain",)}, "kinds are silence, hiss"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, builder, asked, said):
    with pytest.raises(datasets.DatasetError, match=said):
        getattr(datasets, builder)(tmp_path, progress=False, **asked)
    assert not list(tmp_path.iterdir())


def test_the_command_line_makes_them(run, tmp_path):
    done = run("data", "noises", "--out", tmp_path / "a", "--n", 2, "--kinds", "hiss")
    assert (done.code, done.out) == (0, f"2 clips (2 hiss) in {tmp_path / 'a' / 'manifest.csv'}\n")
    done = run(
        *("data", "sentences", "--out", tmp_path / "b", "--n", 1),
        *("--noises", "clean,white", "--accents", "scottish,rp"),
    )
    assert "2 clips (1 sentence, 1 sentence in white 10 dB)" in done.out
    done = run("data", "sentences", "--out", tmp_path / "b", "--n", 2)
    assert done.code == 2
    assert "n was 1, now 2" in done.err


def test_nothing_is_no_set(tmp_path):
    with pytest.raises(datasets.DatasetError, match="nothing to make"):
        building.build(Path(tmp_path), {"builder": "none"}, [], EspeakSynthesis(0), progress=False)
