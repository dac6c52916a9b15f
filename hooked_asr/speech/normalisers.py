"""Texts made comparable: what differs between two spellings of the same words taken out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from hooked_asr.speech.languages import has_spaces, language_code

Normaliser = Callable[[str], str]


def normalise(
    text: str, language: str = "en", tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """A text as Whisper's evaluation compares it; see `normaliser`.

    >>> normalise("Mr. Smith won't pay twenty-one dollars, um, I'm sure!")
    'mister smith will not pay $21 i am sure'
    >>> normalise("Où est-il ?", language="fr"), normalise("你好。", language="zh")
    ('où est il', '你 好')
    """
    return normaliser(language, tokenizer)(text)


def normaliser(
    language: str = "en", tokenizer: PreTrainedTokenizerBase | None = None
) -> Normaliser:
    """Whisper's own text normaliser for a language, given by its code or English name.

    For English it writes out contractions and titles, gives numbers as figures, and drops fillers;
    with the checkpoint's tokenizer, where that has a `normalizer.json`, it writes British spellings
    in the American way. For other languages it takes out case and marks alone, keeps diacritics,
    and parts the characters of a language without spaces, so that there words are characters.
    "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), appendix C.

    Raises `LanguageError` for a language that Whisper does not know.
    """
    if language_code(language) != "en":
        return _stripped(BasicTextNormalizer(split_letters=not has_spaces(language)))
    spellings = getattr(tokenizer, "english_spelling_normalizer", None) or {}
    return _english(tuple(spellings.items()))


@lru_cache(maxsize=8)
def _english(spellings: tuple[tuple[str, str], ...]) -> Normaliser:
    return _stripped(EnglishTextNormalizer(dict(spellings)))


def _stripped(normalise: Normaliser) -> Normaliser:
    return lambda text: normalise(text).strip()
