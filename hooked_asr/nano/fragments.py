"""Clips that are cut off in a word, or stick like a record, with the times of what is left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.nano.clips import Clip
from hooked_asr.nano.espeak import Interval


@dataclass(frozen=True, eq=False)
class Fragment:
    """What is left of a clip: 16 kHz samples, its words, and all that is heard of them.

    `phones` and `times` (of words) have what is cut in two, too, as far as it is heard.
    """

    samples: Int16[np.ndarray, " sample"]
    words: tuple[Interval, ...]
    times: tuple[Interval, ...]
    phones: tuple[Interval, ...]
    repeats: int = 1

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def cut_off(clip: Clip, rng: random.Random) -> Fragment:
    """A clip that ends in the middle of a word; the text has the words before."""
    words = clip.words
    i = rng.randrange(len(words) // 2, len(words))
    end = (words[i].start + words[i].end) / 2
    samples = clip.samples[: round(end * SAMPLE_RATE)]
    times, phones = (_within(one, 0.0, end) for one in (words, clip.phones))
    return Fragment(samples, words[:i], times, phones)


def stuck(clip: Clip, rng: random.Random, seconds: float) -> Fragment:
    """A clip that sticks, as a record does: its last 0.3 to 0.6 s come 4 to 8 times.

    The text has the words of that stretch, whole ones or not, so many times. It lasts `seconds` at
    most.
    """
    length = rng.uniform(0.3, 0.6)
    first, last = clip.words[0].start, clip.words[-1].end
    start = rng.uniform(first, max(first, min(last, seconds - 4 * length) - length))
    times = min(rng.randint(4, 8), int((seconds - start) / length))
    head, stretch = (
        clip.samples[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)]
        for a, b in ((0.0, start), (start, start + length))
    )
    before = [word for word in clip.words if word.end <= start]
    again = [word for word in clip.words if start < word.end and word.start < start + length]
    sound = np.concatenate([head, *[stretch] * times])[: int(seconds * SAMPLE_RATE)]
    heard, phones = (_again(one, start, length, times) for one in (clip.words, clip.phones))
    return Fragment(sound, (*before, *again * times), heard, phones, repeats=times)


def _again(
    intervals: Sequence[Interval], start: float, length: float, times: int
) -> tuple[Interval, ...]:
    """Once until `start`, then the stretch behind it so many times."""
    stretch = _within(intervals, start, start + length)
    return _within(intervals, 0.0, start) + tuple(
        Interval(one.text, one.start + k * length, one.end + k * length)
        for k in range(times)
        for one in stretch
    )


def _within(intervals: Sequence[Interval], start: float, end: float) -> tuple[Interval, ...]:
    return tuple(
        Interval(one.text, max(one.start, start), min(one.end, end))
        for one in intervals
        if one.start < end and one.end > start
    )
