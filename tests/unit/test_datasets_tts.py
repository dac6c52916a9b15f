"""Data sets said by a text-to-speech program: what it is told, and how it may fail."""

import shlex
import sys
import textwrap

import jaxtyping
import numpy as np
import pytest
import soundfile

from hooked_asr import datasets
from hooked_asr.manifests import read_clips

WORDS = {"colour": ["red", "ultramarine"]}

# A tone of 50 ms for each letter at 22.05 kHz; what it was told lies beside the sound.
PROGRAM = """
import sys, numpy, soundfile
voice, out, *told = sys.argv[1:]
text = told[0] if told else sys.stdin.read()
if voice == "broken":
    sys.exit("the model is gone")
if voice == "mute":
    sys.exit(0)
if voice == "garbage":
    open(out, "w").write("no sound")
    sys.exit(0)
samples = numpy.zeros(22050) if voice == "silent" else 0.3 * numpy.sin(
    numpy.arange(int(len(text) * 0.05 * 22050)) * (0.1 if voice == "low" else 0.3))
soundfile.write(out, samples, 22050)
"""


@pytest.fixture(scope="module", autouse=True)
def unchecked_draws():
    """Drawing many sentences is slow where every call's types are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "say it.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return f"{sys.executable} {shlex.quote(str(path))} {{voice}} {{out}}"


def speak(folder, tts, voices, **how):
    return datasets.semantic_categories(
        folder, WORDS, speakers=2, tts=tts, voices=voices, progress=False, **how
    )


@pytest.mark.parametrize("told", ["", " {text}"], ids=["stdin", "argument"])
def test_a_program_says_what_it_is_told(program, told, tmp_path):
    voices = ["low:male:bass", "en=high:female", "de=nobody"]
    clips = read_clips(speak(tmp_path, program + told, voices))
    assert len(clips) == 4
    for one in clips:
        sound, rate = soundfile.read(one.audio_path)
        heard = np.flatnonzero(np.abs(sound) > 0.01)
        assert rate == 16_000
        assert (heard[-1] - heard[0]) / rate == pytest.approx(0.05 * len(one.text), abs=0.01)
        pitch = np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)
        told_pitch = (0.1 if one.group == "low" else 0.3) * 22_050 / (2 * np.pi)
        assert pitch == pytest.approx(told_pitch, rel=0.02)
        named = {"low": ("male", "bass"), "high": ("female", None)}
        assert (one.labels["sex"], one.labels.get("accent")) == named[one.group]
    assert {one.group for one in clips} == {"low", "high"}
    assert not (tmp_path / "words.json").exists()


def test_several_at_a_time_are_the_same(program, tmp_path):
    one = speak(tmp_path / "one", program, ["low", "high"])
    several = speak(tmp_path / "several", program, ["low", "high"], jobs=3)
    assert one.read_bytes() == several.read_bytes()
    for a, b in zip(read_clips(one), read_clips(several), strict=True):
        assert a.audio_path.read_bytes() == b.audio_path.read_bytes()


def test_fragments_without_times(program, tmp_path):
    clips = read_clips(datasets.fragments(tmp_path, 2, tts=program, voices=["low"], progress=False))
    cut, stuck = clips
    whole = 0.05 * len(cut.text)
    assert soundfile.info(cut.audio_path).duration > whole
    assert (cut.labels["kind"], stuck.labels["kind"]) == ("cut off", "stuck")
    assert 4 <= int(stuck.labels["times"]) <= 8


@pytest.mark.parametrize(
    ("voice", "said"),
    [
        ("broken", r"ended with status 1: .*say it.py' broken .*'Red\.'.*: the model is gone"),
        ("mute", "wrote no sound"),
        ("garbage", "wrote what cannot be read"),
        pytest.param(
            "silent", "wrote silence", marks=pytest.mark.filterwarnings("ignore:.*is silent")
        ),
    ],
)
def test_a_program_that_fails_is_told(program, voice, said, tmp_path):
    only = {"colour": ["red"]}
    with pytest.raises(datasets.DatasetError, match=said):
        datasets.semantic_categories(
            tmp_path, only, speakers=1, tts=program, voices=[voice], progress=False
        )
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("tts", "voices", "said"),
    [
        ("no-such-program {out}", ["a"], "cannot be run"),
        ("say {voice}", ["a"], r"a command with \{out\}"),
        ("say {out} {speaker}", ["a"], r"may have \{voice\}, \{text\}"),
        ("say '{out}", ["a"], "cannot be taken apart"),
        ("say {out}", [], "give at least one"),
        ("say {out}", ["de=a"], "no voice speaks 'en'"),
    ],
)
def test_a_command_that_cannot_be_is_refused(tts, voices, said, tmp_path):
    with pytest.raises(datasets.DatasetError, match=said):
        speak(tmp_path, tts, voices)
