"""What is said: whisper-nano's own small language, or an open vocabulary."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.open import OpenTexts
from hooked_asr.nano.clips import chant, draw_sentence
from hooked_asr.nano.lexicon import GROUPS
from hooked_asr.nano.pairs import PAIRS, MinimalPair

VOCABULARIES = ("nano", "open")

# Of whisper-nano's words, those whose group is one of things alike.
_CATEGORIES = "fruit food drink clothing animal colour number country family job place body object"
_DRAWS = 400  # for each sentence that is asked for, before there are held to be no more


@runtime_checkable
class Texts(Protocol):
    """A vocabulary; `seconds` is the longest clip to be made of it."""

    @property
    def seconds(self) -> float: ...

    def sentence(self, rng: random.Random, language: str) -> str:
        """A sentence; others come for other states of `rng`."""

    def chant(self, rng: random.Random, language: str, times: int) -> str:
        """One short word, so many times: "No, no, no.\""""

    def pairs(self, language: str) -> Sequence[MinimalPair]:
        """Words that sound alike, in sentences that ask for one of them."""

    def categories(self, language: str) -> Mapping[str, Sequence[str]]:
        """Words by what they mean; a word of two categories is in the first."""


@dataclass(frozen=True)
class NanoTexts:
    """What whisper-nano knows: of its sentences those kept from its training, or the others."""

    held_out: bool
    seconds: float = 6.0

    def sentence(self, rng: random.Random, language: str) -> str:
        return draw_sentence(rng, language, self.held_out).texts[language]

    def chant(self, rng: random.Random, language: str, times: int) -> str:
        return chant(rng, language, evaluated=True, times=times).parts[0].spoken

    def pairs(self, language: str) -> Sequence[MinimalPair]:
        return [pair for pair in PAIRS if pair.language == language]

    def categories(self, language: str) -> Mapping[str, Sequence[str]]:
        return {
            name: list(dict.fromkeys(word.form(language).base for word in GROUPS[name]))
            for name in _CATEGORIES.split()
        }


def texts(vocabulary: str, held_out: bool) -> Texts:
    """The vocabulary of that name.

    Raises `DatasetError` for another.
    """
    if vocabulary == "nano":
        return NanoTexts(held_out)
    if vocabulary == "open":
        return OpenTexts(held_out)
    raise DatasetError(f"the vocabulary is {' or '.join(VOCABULARIES)}; got {vocabulary!r}")


def distinct_sentences(
    source: Texts, n: int, languages: Sequence[str], name: str, seed: int
) -> Iterator[tuple[str, str]]:
    """`n` languages and sentences, a language after the other in turn; no sentence twice.

    Raises `DatasetError` where there are not so many.
    """
    streams = [
        _stream(source, -(-n // len(languages)), language, name, seed) for language in languages
    ]
    for i in range(n):
        yield languages[i % len(languages)], next(streams[i % len(languages)])


def _stream(source: Texts, n: int, language: str, name: str, seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/{name}/{language}")
    seen: set[str] = set()
    for _ in range(_DRAWS * n + 10_000):
        text = source.sentence(rng, language)
        if text not in seen:
            seen.add(text)
            yield text
    raise DatasetError(f"there are only {len(seen)} sentences in {language!r}; {n} were asked for")
