"""What a sweep measures of free decoding: functions of the transcript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hooked_asr.patching.metrics import MetricError
from hooked_asr.speech import ErrorCounts, count_character_errors, count_word_errors
from hooked_asr.speech.normalisers import Normaliser, normaliser


@dataclass(frozen=True)
class TextMetric:
    """A named measure of what is decoded, by the model's own rules, under each intervention.

    `measure` is given the text alone; `options` are those of `generate` (`language`,
    `max_new_tokens`, …).

    >>> TextMetric("length", lambda text: float(len(text)))("Yes.")
    4.0
    """

    name: str
    measure: Callable[[str], float] = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, text: str) -> float:
        return self.measure(text)


def word_error_rate(
    said: str,
    language: str | None = None,
    normalise: Normaliser | None = None,
    **options: Any,
) -> TextMetric:
    """Word error rate of the transcript against what was said; may pass 1.

    - `language`: in which it was said. `generate` is told it, so leave it out for a model that
      takes none (Qwen2-Audio).
    - `normalise`: what makes the texts comparable; by default Whisper's normaliser for the
      language, or for English. With British spellings, or another language that is not told:
      `speech.normaliser("en", model.tokenizer)`.
    - `options`: of `generate`.

    Raises `MetricError` where nothing was said, `WordErrorsError` where jiwer is not installed,
    `LanguageError`.
    """
    return _error_rate("word_error_rate", count_word_errors, said, language, normalise, options)


def character_error_rate(
    said: str,
    language: str | None = None,
    normalise: Normaliser | None = None,
    **options: Any,
) -> TextMetric:
    """As `word_error_rate`, in characters; the spaces between words are characters too."""
    return _error_rate(
        "character_error_rate", count_character_errors, said, language, normalise, options
    )


def _error_rate(
    name: str,
    count: Callable[..., ErrorCounts],
    said: str,
    language: str | None,
    normalise: Normaliser | None,
    options: dict[str, Any],
) -> TextMetric:
    normalise = normalise or normaliser(language or "en")
    if not count(said, said, normalise).said:  # found out now, before anything is decoded
        raise MetricError(f"{name} needs something that was said; {said!r} has no words")
    told = {} if language is None else {"language": language}
    return TextMetric(
        name, lambda heard: float(count(said, heard, normalise).rate), {**told, **options}
    )
