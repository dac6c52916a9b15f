"""Whisper's languages, by code or by name, and those that are written without spaces."""

from __future__ import annotations

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from hooked_asr.errors import HookedASRError


class LanguageError(HookedASRError):
    """A language that Whisper does not know."""


# Chinese, Japanese, Thai, Lao, Burmese, Cantonese
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def language_code(language: str) -> str:
    """The code of a language given by its code or its English name.

    Raises `LanguageError` for one that is not among Whisper's.

    >>> language_code("Burmese"), language_code("de")
    ('my', 'de')
    """
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES:
        raise LanguageError(
            f"no language {language!r}; Whisper's, by code or English name, are "
            + ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        )
    return code


def has_spaces(language: str) -> bool:
    """Whether a language puts spaces between its words.

    >>> has_spaces("french"), has_spaces("ja")
    (True, False)
    """
    return language_code(language) not in _UNSPACED
