"""When each word is said, where the synthesiser told only of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hooked_asr.nano.espeak import Interval

_MARKS = ".,?¿!¡"


def every_word(text: str, heard: Sequence[Interval]) -> tuple[Interval, ...]:
    """A time for each word of a text: those that espeak-ng says as one ("for a") share its time,
    by their letters.

    >>> heard = [Interval("Wait", 0.0, 0.4), Interval("for", 0.4, 0.8), Interval("bus", 0.8, 1.2)]
    >>> [(one.text, round(one.end, 3)) for one in every_word("Wait for a bus.", heard)]
    [('Wait', 0.4), ('for', 0.7), ('a', 0.8), ('bus', 1.2)]
    """
    words = [word.strip(_MARKS) for word in text.split()]
    found = _whose(text, heard)
    firsts = sorted({0, *found})
    groups = zip(firsts, [*firsts[1:], len(words)], strict=True)
    timed: list[Interval] = []
    for first, end in groups:
        own = [one for one, whose in zip(heard, found, strict=True) if first <= whose < end]
        if own:
            timed += _shared(words[first:end], own[0].start, own[-1].end)
    return tuple(timed)


def _whose(text: str, heard: Sequence[Interval]) -> list[int]:
    """The word of the text to which each interval belongs: "twenty-one" is two of them."""
    whose, cursor = [], 0
    for one in heard:
        cursor = max(text.find(one.text, cursor), cursor)
        whose.append(len(text[: cursor + 1].split()) - 1)
        cursor += len(one.text)
    return whose


def _shared(words: Sequence[str], start: float, end: float) -> Iterator[Interval]:
    letters = sum(map(len, words))
    clock = start
    for i, word in enumerate(words, start=1):
        stop = end if i == len(words) else clock + (end - start) * len(word) / letters
        yield Interval(word, clock, stop)
        clock = stop
