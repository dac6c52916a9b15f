"""What is said of an open vocabulary, read from the tables beside this file.

A line of `sentences.*.txt` is a sentence with alternatives, `[one|other]`. Those of `pairs.en.txt`
are as in `hooked_asr.nano.pairs`: a pair, sentences that ask for its first word, and for the other.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hooked_asr.datasets.errors import DatasetError
from hooked_asr.nano.pairs import MinimalPair, pair_table
from hooked_asr.nano.phrases import capitalised

_FOLDER = Path(__file__).parent
_HELD_OUT = 2  # one sentence in so many
_ALTERNATIVES = re.compile(r"\[([^]]+)\]")


@dataclass(frozen=True)
class OpenTexts:
    """Sentences in English, Spanish and German, kept apart for evaluation or the others; pairs and
    categories in English.
    """

    held_out: bool
    seconds: float = 30.0

    def sentence(self, rng: random.Random, language: str) -> str:
        lines = _lines("sentences", language)
        while True:
            text = _drawn(rng.choice(lines), rng)
            if _kept(text) == self.held_out:
                return text

    def chant(self, rng: random.Random, language: str, times: int) -> str:
        word = rng.choice(_lists("chants")[language])
        return capitalised(", ".join([word] * times)) + "."

    def pairs(self, language: str) -> Sequence[MinimalPair]:
        """Each pair both ways: either word is said where the other one is likely."""
        pairs = pair_table(language, "\n".join(_lines("pairs", language)))
        return [*(_alone(one) for one in pairs), *(_turned(one) for one in pairs)]

    def categories(self, language: str) -> Mapping[str, Sequence[str]]:
        return _lists(f"categories.{_checked('categories', language)}")


def _alone(pair: MinimalPair) -> MinimalPair:
    return MinimalPair(pair.language, pair.word, pair.partner, pair.frames, ())


def _turned(pair: MinimalPair) -> MinimalPair:
    return MinimalPair(pair.language, pair.partner, pair.word, pair.partner_frames, ())


def _drawn(line: str, rng: random.Random) -> str:
    return capitalised(_ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), line))


def _kept(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0


@cache
def _lines(table: str, language: str) -> list[str]:
    return _read(f"{table}.{_checked(table, language)}")


@cache
def _lists(table: str) -> dict[str, list[str]]:
    """Names, each with its words."""
    rows = (line.split(": ") for line in _read(table))
    return {name: words.split(", ") for name, words in rows}


def _read(table: str) -> list[str]:
    return (_FOLDER / f"{table}.txt").read_text(encoding="utf-8").splitlines()


def _checked(table: str, language: str) -> str:
    there = sorted(path.name.split(".")[1] for path in _FOLDER.glob(f"{table}.*.txt"))
    if language not in there:
        raise DatasetError(
            f"the open vocabulary has {table} in {', '.join(there)}, not in {language!r}: ask for "
            'those, or for vocabulary="nano"'
        )
    return language
