"""How texts sound: their phonemes, by espeak-ng, and how far one text is from another in them."""

from __future__ import annotations

import logging
import math
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES

from hooked_asr.errors import HookedASRError
from hooked_asr.speech.languages import language_code

# Another way from texts to phonemes: `phonemes(texts, language)`, a list for each text.
Phonemes = Callable[[list[str], str], list[list[str]]]

# espeak-ng's voice, where it is not called as Whisper calls the language.
_VOICES = {"en": "en-us", "fr": "fr-fr", "no": "nb", "zh": "cmn"}

# Script -> languages in which espeak-ng reads its letters; Latin ones it reads in all. Elsewhere it
# says what a letter is called ("chinese letter", of any sign): so of Chinese signs in Japanese.
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "ARABIC": ("ar", "fa", "sd", "ur"),
    "ARMENIAN": ("hy",),
    "BENGALI": ("as", "bn"),
    "CJK": ("yue", "zh"),
    "CYRILLIC": ("ba", "be", "bg", "kk", "mk", "ru", "sr", "tt", "uk"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "ETHIOPIC": ("am",),
    "GEORGIAN": ("ka",),
    "GREEK": ("el",),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "HEBREW": ("he",),
    "HIRAGANA": ("ja",),
    "KANNADA": ("kn",),
    "KATAKANA": ("ja",),
    "MALAYALAM": ("ml",),
    "MYANMAR": ("my",),
    "SINHALA": ("si",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
}


class PhonemeError(HookedASRError):
    """Phonemes that cannot be had: no phonemizer, or no espeak-ng."""


def phoneme_error_rate(
    said: str, heard: str, language: str = "en", phonemes: Phonemes | None = None
) -> float:
    """The fewest phonemes to change, leave out and put in, to get from what was said to what was
    heard; for each phoneme said, so it may pass 1.

    - `language`: one of Whisper's, by code or English name.
    - `phonemes`: as `to_phonemes`, the default.

    NaN where either has no phonemes: no word in it, or none that can be read.

    Raises `LanguageError` for a language unknown to Whisper; `PhonemeError` as `to_phonemes`.

    >>> phoneme_error_rate("write", "right"), phoneme_error_rate("cat", "cart")
    (0.0, 0.3333333333333333)
    """
    convert = to_phonemes if phonemes is None else phonemes
    return distance_rate(*convert([said, heard], language_code(language)))


def to_phonemes(texts: list[str], language: str) -> list[list[str]]:
    """Each text's phonemes in IPA, by espeak-ng (phonemizer's backend), without stress.

    A phoneme is what espeak-ng takes for one: diphthongs, affricates and long vowels are single,
    a tone belongs to its vowel. Pieces of words are read as they stand ("th" by the names of its
    letters), and words that espeak-ng knows to be foreign as in their own language.

    Empty for a text without a letter or number, or with letters of a script that espeak-ng does
    not read in this language; and, with a warning, for any text of a language that it does not
    speak at all.

    espeak-ng is that of the `espeakng-loader` wheel, or else the system's; the environment's
    PHONEMIZER_ESPEAK_LIBRARY, where it is set, goes before both.

    Raises `PhonemeError` where phonemizer or espeak-ng is missing, and `LanguageError` for a
    language unknown to Whisper.

    >>> to_phonemes(["thought", "..."], "en"), to_phonemes(["Straße"], "de")
    ([['θ', 'ɔː', 't'], []], [['ʃ', 't', 'ɾ', 'ɑː', 's', 'ə']])
    """
    code = language_code(language)
    voice = _VOICES.get(code, code)
    if voice not in _voices():
        warnings.warn(
            f"espeak-ng does not speak {LANGUAGES[code]} ({code!r}): nothing is known of how its "
            "words sound (another grapheme-to-phoneme is given as phonemes=)",
            stacklevel=2,
        )
        return [[] for _ in texts]
    found: list[list[str]] = [[] for _ in texts]
    read = [i for i, text in enumerate(texts) if is_word(text) and _is_readable(text, code)]
    for i, phonemes in zip(read, _converted([texts[i] for i in read], voice), strict=True):
        found[i] = phonemes
    return found


def is_word(text: str) -> bool:
    """Whether there is a letter or a number to say, in text that is whole.

    Half of a character's bytes are no text: tokenizers show them as U+FFFD.

    >>> [is_word(text) for text in (" the", "ing", "42", " -", "\\ufffd", "")]
    [True, True, True, False, False, False]
    """
    return "\ufffd" not in text and any(
        _is_letter(one) or unicodedata.category(one)[0] == "N" for one in text
    )


def distance_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Levenshtein distance over the length of what was said; NaN where either is empty."""
    return _distance(said, heard) / len(said) if said and heard else math.nan


def _distance(said: Sequence[str], heard: Sequence[str]) -> int:
    """Insertions, deletions and substitutions, row by row of Wagner and Fischer's table (1974)."""
    above = list(range(len(heard) + 1))
    for i, one in enumerate(said, 1):
        row = [i]
        for j, other in enumerate(heard, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
        above = row
    return above[-1]


def _is_readable(text: str, code: str) -> bool:
    """Whether all letters are Latin, or of a script that is read in the language."""
    whole = unicodedata.normalize("NFKC", text)
    names = [unicodedata.name(one, "") for one in whole if _is_letter(one)]
    scripts = {name.partition(" ")[0] for name in names}
    return all(script == "LATIN" or code in _SCRIPTS.get(script, ()) for script in scripts)


def _is_letter(character: str) -> bool:
    """A letter by itself, and none that modifies others (a prolonged sound mark)."""
    kind = unicodedata.category(character)
    return kind[0] == "L" and kind != "Lm"


# --- phonemizer -----------------------------------------------------------------------------------


def _converted(texts: list[str], voice: str) -> list[list[str]]:
    if not texts:
        return []
    from phonemizer.separator import Separator

    apart = Separator(phone=" ", word="\n")
    return [line.split() for line in _backend(voice).phonemize(texts, apart, strip=True)]


@cache
def _voices() -> frozenset[str]:
    """The voices that espeak-ng has."""
    try:
        return frozenset(_espeak().supported_languages())
    except (RuntimeError, OSError) as error:
        raise PhonemeError(
            f"phonemizer cannot use espeak-ng ({error}): pip install 'hooked_asr[phonemes]', or "
            "install your system's espeak-ng; TMPDIR is to name a folder from which programs can "
            "be run"
        ) from error


@cache
def _backend(voice: str) -> Any:
    # phonemizer's own logger would tell of each foreign word.
    quiet = logging.Logger("hooked_asr.phonemes", logging.ERROR)
    return _espeak()(voice, language_switch="remove-flags", logger=quiet)


def _espeak() -> Any:
    """phonemizer's backend, pointed at the same espeak-ng as `sounds.Espeak`."""
    try:
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise PhonemeError(
            "phonemes need phonemizer: pip install 'hooked_asr[phonemes]'; or give your own "
            "grapheme-to-phoneme as phonemes="
        ) from error
    try:
        import espeakng_loader
    except ImportError:
        return EspeakBackend
    if "PHONEMIZER_ESPEAK_LIBRARY" not in os.environ:
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend
