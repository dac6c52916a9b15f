"""What a data set is made of: items to be said, and the recordings that come of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Int16

from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.word_times import every_word
from hooked_asr.nano.clips import Clip, Part, Plan
from hooked_asr.nano.espeak import Interval
from hooked_asr.nano.voices import Voice

Pcm = Int16[np.ndarray, " sample"]  # at 16 kHz
Labels = Mapping[str, str | int | float]
Say = Callable[[Plan], Clip]

_FASTER = 1.15
_ATTEMPTS = 6


@dataclass(frozen=True, eq=False)
class Made:
    """A recording, what is known of it, and what is heard when (s), where that is known."""

    id: str
    samples: Pcm
    text: str
    language: str
    group: str
    labels: Labels
    words: tuple[Interval, ...] = ()
    phones: tuple[Interval, ...] = ()


@dataclass(frozen=True, eq=False)
class Item:
    """One thing to be said, or a sound to be made: `make` gives its recordings."""

    id: str
    make: Callable[[Say], Iterable[Made]]


@dataclass(frozen=True)
class Asked:
    """What is to be said under a name: the first of `plans()` that is not too long is taken."""

    id: str
    plans: Callable[[], Iterable[Plan]]
    labels: Labels = field(default_factory=dict)
    seconds: float = 30.0

    def said(self, say: Say) -> Clip:
        """Raises `DatasetError` where every plan is too long."""
        for plan in self.plans():
            clip = say(plan)
            if clip.seconds <= self.seconds:
                return replace(clip, words=every_word(clip.text, clip.words))
        raise DatasetError(
            f"{self.id}: {clip.text!r} takes {clip.seconds:.1f} s even when said quickly, and the "
            f"longest clip is {self.seconds:g} s: ask for shorter texts, or a quicker voice"
        )


def spoken_item(asked: Asked) -> Item:
    """An item of one recording, as it is said."""
    return Item(asked.id, lambda say: [recording(asked, asked.said(say))])


def recording(asked: Asked, clip: Clip) -> Made:
    """A clip with the labels that every recording has: sex, accent, noise, kind, speech."""
    voice = clip.plan.voice
    labels = {"sex": voice.sex, "accent": voice.accent, "noise": "clean", "kind": clip.plan.kind}
    return Made(
        asked.id,
        clip.samples,
        clip.text,
        voice.language,
        voice.speaker,
        {**labels, "speech": "yes", **asked.labels},
        clip.words,
        clip.phones,
    )


def one_part(kind: str, text: str, voice: Voice, lead: float) -> Plan:
    """A plan of one text behind `lead` seconds of silence."""
    return Plan(kind, (Part(text, text, voice),), (lead,))


def ever_faster(plan: Plan) -> Callable[[], Iterable[Plan]]:
    """A plan, and the same said faster and faster."""
    return lambda: (_at_rate(plan, _FASTER**k) for k in range(_ATTEMPTS))


def as_pcm(samples: Float32[np.ndarray, " sample"]) -> Pcm:
    """Samples of full scale 1 as 16 bits; what is louder is made quieter as a whole."""
    loudest = float(np.abs(samples).max(initial=0.0))
    scaled = samples * (min(1.0, 0.99 / max(loudest, 1e-9)) * 2**15)
    return scaled.round().astype(np.int16)


def _at_rate(plan: Plan, factor: float) -> Plan:
    def quicker(part: Part) -> Part:
        return replace(part, voice=replace(part.voice, rate=round(part.voice.rate * factor)))

    return replace(plan, parts=tuple(map(quicker, plan.parts)))
