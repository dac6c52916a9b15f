"""What comes with the package: the trained checkpoint, and a few clips to try it on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.errors import HookedASRError
from hooked_asr.files import folder_written_aside
from hooked_asr.nano.clips import Clip, Part, Plan
from hooked_asr.nano.corpus import speak_set
from hooked_asr.nano.espeak import Interval
from hooked_asr.nano.noise import add_noise, babble, noise
from hooked_asr.nano.voices import Voice

_FOLDER = Path(__file__).parent / "audio"
_SEED = 7


class ClipError(HookedASRError):
    """A clip that the package does not have."""


@dataclass(frozen=True)
class BundledClip:
    """A synthetic recording: where it lies, what is said (empty where nothing is), by whom, and
    when (s); `about` tells what it is for.
    """

    name: str
    text: str
    language: str
    sex: str
    accent: str
    about: str
    words: tuple[Interval, ...] = ()
    phones: tuple[Interval, ...] = ()

    @property
    def path(self) -> Path:
        return _FOLDER / f"{self.name}.flac"


def clips() -> list[BundledClip]:
    """The clips that come with the package.

    >>> [clip.text for clip in clips() if clip.name == "english"]
    ['My daughter has a blue belt and a green dress.']
    """
    fields = json.loads((_FOLDER / "clips.json").read_text(encoding="utf-8"))
    return [_from_fields(one) for one in fields]


def clip(name: str) -> BundledClip:
    """The bundled clip of that name.

    Raises `ClipError` for another name.
    """
    known = {one.name: one for one in clips()}
    if name not in known:
        raise ClipError(f"no clip {name!r} comes with the package; there are {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class _Recipe:
    """A clip to make: who says what, and the sound (with its dB) that is put over it."""

    name: str
    about: str
    language: str
    text: str
    voice: str  # accent, speaker, sex, rate
    over: tuple[str, float] | None = None


_ENGLISH = "My daughter has a blue belt and a green dress."
_RECIPES = (
    _Recipe("english", "clean speech", "en", _ENGLISH, "american f5 female 160"),
    _Recipe(
        "english_babble",
        "the same, with others talking louder (-5 dB)",
        "en",
        _ENGLISH,
        "american f5 female 160",
        over=("babble", -5.0),
    ),
    _Recipe(
        "scottish",
        "a Scottish accent",
        "en",
        "My father needs a new plate and seven books.",
        "scottish miguel male 150",
    ),
    _Recipe(
        "spanish",
        "clean speech, to transcribe or translate",
        "es",
        "Mi tío compra calcetines blancos.",
        "castilian Annie female 150",
    ),
    _Recipe(
        "german",
        "clean speech, to transcribe or translate",
        "de",
        "Mein Bruder ist Arzt in England.",
        "standard m8 male 150",
    ),
    _Recipe(
        "likely",
        "a word where it is likely",
        "en",
        "We eat white rice every day.",
        "rp steph female 150",
    ),
    _Recipe(
        "unlikely",
        "its neighbour in sound in its place",
        "en",
        "We eat white lice every day.",
        "rp steph female 150",
    ),
    _Recipe(
        "chant",
        "one word, again and again",
        "en",
        "No, no, no, no, no, no, no, no, no, no.",
        "american Diogo male 190",
    ),
    _Recipe("hiss", "faint noise, and nobody speaks", "en", "", "", over=("white", -64.0)),
)


def make_clips(folder: str | os.PathLike[str]) -> None:
    """Speak the clips anew, into `folder`, with their times in `clips.json`."""
    spoken = {one.name: made for one, made in zip(_RECIPES, _spoken(), strict=True)}
    talkers = [one.samples.astype(np.float32) for one in spoken.values() if one]
    with folder_written_aside(folder) as aside:
        records = []
        for one in _RECIPES:
            rng = np.random.default_rng(_SEED)
            samples = _mixed(one, spoken[one.name], talkers[-5:], rng)
            soundfile.write(aside / f"{one.name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
            records.append(asdict(_described(one, spoken[one.name])))
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (aside / "clips.json").write_text(text + "\n", encoding="utf-8")


def _spoken() -> list[Clip | None]:
    plans = [_plan(one) for one in _RECIPES if one.text]
    made = iter(speak_set(plans, _SEED))
    return [next(made) if one.text else None for one in _RECIPES]


def _plan(one: _Recipe) -> Plan:
    voice = _voice(one)
    return Plan("sentence", (Part(one.text, one.text, voice),), (0.2,))


def _voice(one: _Recipe) -> Voice:
    accent, speaker, sex, rate = one.voice.split()
    return Voice(one.language, accent, speaker, sex, int(rate), pitch=50, stretch=1.0)


def _mixed(
    one: _Recipe,
    spoken: Clip | None,
    talkers: list[Float32[np.ndarray, "..."]],
    rng: np.random.Generator,
) -> Float32[np.ndarray, " sample"]:
    if spoken is None:
        kind, level = one.over or ("white", -60.0)
        return noise(kind, 3 * SAMPLE_RATE, rng) * np.float32(10 ** (level / 20))
    speech = spoken.samples.astype(np.float32) / 2**15
    if one.over is None:
        return speech
    loud = add_noise(speech, babble(talkers, len(speech), rng), snr=one.over[1])
    return loud * min(1.0, 0.9 / float(np.abs(loud).max()))


def _described(one: _Recipe, spoken: Clip | None) -> BundledClip:
    if spoken is None:
        return BundledClip(one.name, "", one.language, "", "", one.about)
    voice = _voice(one)
    return BundledClip(
        one.name,
        one.text,
        one.language,
        voice.sex,
        voice.accent,
        one.about,
        spoken.words,
        spoken.phones,
    )


def _from_fields(fields: dict[str, object]) -> BundledClip:
    times = {
        name: tuple(Interval(**interval) for interval in fields.pop(name))  # type: ignore[attr-defined]
        for name in ("words", "phones")
    }
    return BundledClip(**fields, **times)  # type: ignore[arg-type]
