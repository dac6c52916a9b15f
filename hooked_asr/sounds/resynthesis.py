"""Words in another voice, each at the moment at which the clip says its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hooked_asr.audio import SAMPLE_RATE, AudioError
from hooked_asr.sounds.espeak import Espeak, Interval
from hooked_asr.sounds.noise import Samples, Talker
from hooked_asr.sounds.stretch import stretched

Span = tuple[float, float]

_FADE = SAMPLE_RATE * 4 // 1000  # at both ends of a word, against clicks
_QUIET = 0.01  # of the loudest sample: what is below at a word's ends is a pause


def resynthesised(
    text: str, word_times: Sequence[Span], n_samples: int, voice: str = "en-us+f3", seed: int = 0
) -> Samples:
    """A text said by espeak-ng, each word stretched to the time it is given; silence elsewhere.

    With the words and times of a clip, it is the clip in another voice; with other words, as many,
    it is another sentence whose words lie where the clip's do: either can be patched into the clip
    position by position.

        words = model.generate("clip.flac", words=True)[0].words
        times = [(word.start, word.end) for word in words]
        resynthesised("We eat white lice every day.", times, n_samples, "en-us+f3")

    - `text`: words with spaces between.
    - `word_times`: from when to when (s) each is to be said, in order. A word of no time is left
      out. Words that espeak-ng says as one ("of the") are stretched as one to the time of both.
    - `voice`: a voice of espeak-ng and a variant of it, as "en-us+f3", "de+m2".

    The same samples come for the same seed with the espeak-ng of the `espeakng-loader` wheel.

    Raises `AudioError` for times that do not fit the text or the clip, `SynthesisError` where
    espeak-ng is missing or lacks the voice.
    """
    words = text.split()
    _check(words, word_times, n_samples / SAMPLE_RATE)
    said = Espeak(seed, fresh=True).say(" ".join(words), voice)
    sound = said.samples.astype(np.float32) / 2**15
    made = np.zeros(n_samples, np.float32)
    for spoken, (start, end) in _matched(words, said.words, word_times):
        first, stop = (round(moment * SAMPLE_RATE) for moment in (start, end))
        stop = min(stop, n_samples)
        if stop > first:
            made[first:stop] = _faded(stretched(_cut(sound, spoken), stop - first))
    return made


def _check(words: Sequence[str], word_times: Sequence[Span], lasts: float) -> None:
    if not words or len(words) != len(word_times):
        raise AudioError(
            f"{len(words)} words and {len(word_times)} times: give a time for each word, and at "
            f"least one; the words are {words}"
        )
    moments = [moment for span in word_times for moment in span]
    if moments != sorted(moments) or moments[0] < 0 or moments[-1] > lasts + 0.05:
        raise AudioError(
            f"the times of words lie behind each other, from 0 to the clip's {lasts:.2f} s; got "
            f"{list(word_times)}"
        )


def _matched(
    words: Sequence[str], spoken: Sequence[Interval], word_times: Sequence[Span]
) -> list[tuple[Span, Span]]:
    """Which stretch of espeak-ng's sound goes where; words that it says as one are one entry."""
    found = _whose(words, spoken)
    pairs: list[tuple[Span, Span]] = []
    for i, span in enumerate(word_times):
        own = [one for one, whose in zip(spoken, found, strict=True) if whose == i]
        if own:
            pairs.append(((own[0].start, own[-1].end), span))
        elif pairs:  # it was said along with the one before
            source, (start, _) = pairs[-1]
            pairs[-1] = source, (start, span[1])
    return pairs


def _whose(words: Sequence[str], spoken: Sequence[Interval]) -> list[int]:
    """The word of the text to which each of espeak-ng's belongs: "twenty-one" is two of them."""
    text = " ".join(words)
    whose, cursor = [], 0
    for one in spoken:
        cursor = max(text.find(one.text, cursor), cursor)
        whose.append(text.count(" ", 0, cursor))
        cursor += len(one.text)
    return [min(i, len(words) - 1) for i in whose]


def _cut(sound: Samples, spoken: Span) -> Talker:
    """A word's own sound, without pauses at its ends."""
    start, end = (round(moment * SAMPLE_RATE) for moment in spoken)
    word = sound[start:end]
    loud = np.flatnonzero(np.abs(word) > _QUIET * np.abs(sound).max())
    return word[loud[0] : loud[-1] + 1] if len(loud) else word


def _faded(word: Samples) -> Samples:
    n = min(_FADE, len(word) // 2)
    rise = np.linspace(0, 1, n, endpoint=False, dtype=np.float32)
    word[:n] *= rise
    word[len(word) - n :] *= rise[::-1]
    return word
