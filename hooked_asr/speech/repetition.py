"""A recogniser caught in a loop: where it says the same again and again, and how much of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from hooked_asr.errors import HookedASRError

MIN_REPEATS = 3
MAX_UNIT = 40  # items: longer than most sentences, in tokens as in words

# Past these, OpenAI's and Hugging Face's decoding takes a transcript for a loop and tries again.
MAX_TEXT_COMPRESSION = 2.4
MAX_TOKEN_COMPRESSION = 1.35


class RepetitionError(HookedASRError):
    """A search for repetition that makes no sense."""


@dataclass(frozen=True)
class Loop:
    """`unit` said `count` times in a row, in `sequence[start:end]`.

    `count` has whole repeats alone; the end of the loop may hold the beginning of one more.
    """

    unit: tuple[Hashable, ...]
    count: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def find_loops(
    sequence: Sequence[Hashable], min_repeats: int = MIN_REPEATS, max_unit: int = MAX_UNIT
) -> list[Loop]:
    """The loops of a sequence of tokens or words, in order, none over another.

    A loop is as long as the same unit, of up to `max_unit` items, goes on repeating, and has it at
    least `min_repeats` times. Where two overlap the longer one stays; of two that are as long the
    one of the smaller unit. Time grows as `len(sequence) * max_unit`.

    Raises `RepetitionError` for `min_repeats` below 2 or `max_unit` below 1.

    >>> find_loops("so and so and so and so I see".split())
    [Loop(unit=('so', 'and'), count=3, start=0, end=7)]
    """
    if min_repeats < 2 or max_unit < 1:
        raise RepetitionError(
            f"min_repeats={min_repeats}, max_unit={max_unit}: a loop says a unit of at least 1 "
            "item at least 2 times"
        )
    longest = min(max_unit, len(sequence) // min_repeats)
    runs = [loop for size in range(1, longest + 1) for loop in _runs(sequence, size, min_repeats)]
    runs.sort(key=lambda loop: (-len(loop), len(loop.unit), loop.start))
    free, kept = bytearray(b"\1") * len(sequence), []
    for loop in runs:
        # Those kept are no shorter, so one that overlaps covers an end of this loop.
        if free[loop.start] and free[loop.end - 1]:
            free[loop.start : loop.end] = bytes(len(loop))
            kept.append(loop)
    return sorted(kept, key=lambda loop: loop.start)


def _runs(sequence: Sequence[Hashable], size: int, min_repeats: int) -> Iterator[Loop]:
    """The longest stretches in which each item is the one `size` before it."""
    start = 0
    for i in range(size, len(sequence) + 1):
        if i < len(sequence) and sequence[i] == sequence[i - size]:
            continue
        count = (i - start) // size
        if count >= min_repeats:
            yield Loop(tuple(sequence[start : start + size]), count, start, i)
        start = i - size + 1


def is_looping(
    sequence: Sequence[Hashable], min_repeats: int = MIN_REPEATS, max_unit: int = MAX_UNIT
) -> bool:
    """Whether there is any loop. People repeat themselves too: "no, no, no" is one.

    >>> is_looping("no no no".split()), is_looping("no no no".split(), min_repeats=4)
    (True, False)
    """
    return bool(find_loops(sequence, min_repeats, max_unit))


def loop_share(
    sequence: Sequence[Hashable], min_repeats: int = MIN_REPEATS, max_unit: int = MAX_UNIT
) -> float:
    """The share of the items that are in loops; 0 where there are no items.

    >>> loop_share("well no no no".split())
    0.75
    """
    loops = find_loops(sequence, min_repeats, max_unit)
    return sum(map(len, loops)) / len(sequence) if sequence else 0.0


def repeated_ngrams(words: Sequence[Hashable], n: int) -> float:
    """The share of the runs of `n` words that have come before, in a row or not.

    0 where there are fewer than `n` words. Raises `RepetitionError` for `n` below 1.

    >>> repeated_ngrams("the cat and the cat".split(), 2)
    0.25
    """
    if n < 1:
        raise RepetitionError(f"a run has at least 1 word; n={n}")
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes a text: bytes of its UTF-8 over bytes compressed.

    OpenAI's decoding takes more than 2.4 for a loop ("Robust Speech Recognition via Large-Scale
    Weak Supervision", 2022, section 4.5).

    >>> compression_ratio("and so " * 20) > MAX_TEXT_COMPRESSION, compression_ratio("")
    (True, 0.0)
    """
    return _ratio(text.encode())


def token_compression_ratio(tokens: Sequence[int], d_vocab: int) -> float:
    """How many times smaller zlib makes the tokens, each in as few bytes as `d_vocab` asks for.

    Hugging Face's stand-in for `compression_ratio`, which needs no tokenizer; its documentation
    has 1.35 for the threshold. It is another measure, not to be set against 2.4.

    Raises `RepetitionError` for a token that `d_vocab` does not hold.

    >>> token_compression_ratio([7, 8, 9] * 20, d_vocab=51865) > MAX_TOKEN_COMPRESSION
    True
    """
    size = int(math.log2(d_vocab) / 8) + 1
    wrong = [token for token in tokens if not 0 <= token < d_vocab]
    if wrong:
        raise RepetitionError(f"a vocabulary of {d_vocab} has no token {wrong[0]}")
    return _ratio(b"".join(token.to_bytes(size, "little") for token in tokens))


def _ratio(data: bytes) -> float:
    return len(data) / len(zlib.compress(data))
