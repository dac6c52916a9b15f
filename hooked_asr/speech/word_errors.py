"""How far what was heard is from what was said: word and character error rates, by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import ModuleType
from typing import Any

from hooked_asr.errors import HookedASRError
from hooked_asr.speech.normalisers import Normaliser

Texts = str | Sequence[str]


class WordErrorsError(HookedASRError):
    """Texts that cannot be compared, or no jiwer to compare them with."""


@dataclass(frozen=True)
class ErrorCounts:
    """Of the words (or characters) said: heard right, as others, or not; and heard but not said."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def said(self) -> int:
        """How many were said."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """How many went wrong, of any kind."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors for each word said; may pass 1. Where nothing was said it is 0 if nothing was
        heard either, and infinite if something was: look at `insertions` there.
        """
        if self.said:
            return self.errors / self.said
        return float("inf") if self.errors else 0.0


@dataclass(frozen=True)
class Difference:
    """A step of an alignment: "hit", "substitution", "deletion" or "insertion", and its words."""

    kind: str
    said: str | None
    heard: str | None


_KINDS = {
    "equal": "hit",
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}


def wer(said: Texts, heard: Texts, normaliser: Normaliser | None = None) -> float:
    """Word error rate; of lists, over all words together. See `count_word_errors`.

    >>> wer("the cat sat", "the cat sat down")
    0.3333333333333333
    """
    return count_word_errors(said, heard, normaliser).rate


def cer(said: Texts, heard: Texts, normaliser: Normaliser | None = None) -> float:
    """Character error rate; of lists, over all characters together. See `count_character_errors`.

    >>> cer("cat", "cut")
    0.3333333333333333
    """
    return count_character_errors(said, heard, normaliser).rate


def count_word_errors(
    said: Texts, heard: Texts, normaliser: Normaliser | None = None
) -> ErrorCounts:
    """The fewest words to change, leave out and put in, to get from what was said to what was
    heard.

    Args:
        said: A text, or one for each clip. A text may be empty: all that was heard is inserted.
        heard: As many texts.
        normaliser: What makes the texts comparable, as `normaliser("en")` does. Without one they
            are compared as they stand: case and punctuation count.

    Raises:
        WordErrorsError: There are not as many texts heard as said, or none at all; or jiwer is not
            installed.

    >>> count_word_errors(["yes", "no"], ["yes it is", "oh"])
    ErrorCounts(hits=1, substitutions=1, deletions=0, insertions=2)
    """
    return _counts(_jiwer().process_words(*_comparable(said, heard, normaliser)))


def count_character_errors(
    said: Texts, heard: Texts, normaliser: Normaliser | None = None
) -> ErrorCounts:
    """As `count_word_errors`, in characters; the spaces between words are characters too."""
    return _counts(_jiwer().process_characters(*_comparable(said, heard, normaliser)))


def aligned(said: str, heard: str, normaliser: Normaliser | None = None) -> list[Difference]:
    """One text beside the other, word by word; the words that belong together in one row.

    Raises `WordErrorsError` where jiwer is not installed.

    >>> for row in aligned("the cat sat", "a cat sat down"):
    ...     print(row.kind, row.said, row.heard)
    substitution the a
    hit cat cat
    hit sat sat
    insertion None down
    """
    result = _jiwer().process_words(*_comparable(said, heard, normaliser))
    (said_words,), (heard_words,), (chunks,) = (
        result.references,
        result.hypotheses,
        result.alignments,
    )
    rows: list[Difference] = []
    for chunk in chunks:
        left = said_words[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard_words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        # Hits and substitutions are as long as each other; of the others one side is empty.
        rows += [Difference(_KINDS[chunk.type], *words) for words in zip_longest(left, right)]
    return rows


def _comparable(
    said: Texts, heard: Texts, normaliser: Normaliser | None
) -> tuple[list[str], list[str]]:
    said, heard = ([text] if isinstance(text, str) else list(text) for text in (said, heard))
    if not said or len(said) != len(heard):
        raise WordErrorsError(
            f"{len(said)} texts said, {len(heard)} heard: give one heard for each said, and at "
            "least one"
        )
    return _prepared(said, normaliser), _prepared(heard, normaliser)


def _prepared(texts: list[str], normaliser: Normaliser | None) -> list[str]:
    normalised = map(normaliser, texts) if normaliser else texts
    return [" ".join(text.split()) for text in normalised]  # jiwer parts words at spaces alone


def _counts(result: Any) -> ErrorCounts:
    return ErrorCounts(result.hits, result.substitutions, result.deletions, result.insertions)


def _jiwer() -> ModuleType:
    try:
        import jiwer
    except ImportError as error:
        raise WordErrorsError(
            "word and character errors need jiwer: pip install 'hooked_asr[speech]'"
        ) from error
    return jiwer
