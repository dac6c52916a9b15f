"""What was heard in each clip of a corpus, and what is left of it where monitors are heeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from hooked_asr.manifests import Clip
from hooked_asr.speech import LanguageError, count_word_errors, normaliser
from hooked_asr.speech.normalisers import Normaliser


@dataclass(frozen=True)
class HeardClip:
    """A clip, and what was heard in it.

    - `language`: in which a Whisper was asked. `tokens`: the transcript's, as text.
    - `scores`, `flagged`, `token_scores`: by each monitor, as in `ClipScores`; a clip's score is
      that of its last window.
    """

    clip: Clip
    heard: str
    language: str | None = None
    tokens: list[str] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    flagged: list[bool] = field(default_factory=list)
    token_scores: list[list[float | None]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ClipTranscripts:
    """The transcripts of a corpus, clip by clip.

    - `heard`: of each clip, in their order; `monitors`: what the monitors tell.
    - `failed`: why there is none, for each clip that was skipped.
    """

    heard: list[HeardClip]
    monitors: list[str]
    model: str
    failed: Mapping[str, str] = field(default_factory=dict)

    def with_words(self) -> list[Clip]:
        """The clips in which anything was heard, said or not."""
        return [one.clip for one in self.heard if one.heard]

    def transcribed(self) -> list[Clip]:
        """All clips, with what was heard in each in the place of its text."""
        return [replace(one.clip, text=one.heard) for one in self.heard]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each clip.

        - `clip`, `group`, `language`, `text` (what is said, where that is known), and its labels.
        - `heard`; `words`: how many these are, in the language's spelling; with monitors
          `words_kept`: none where any is alarmed.
        - `errors`: words that went wrong, of `said`; NaN where a clip has no text.
        - `flagged`: by any monitor; and for each its score, "speech score" of one of "speech".
        """
        spelling: dict[str, Normaliser] = {}
        return pd.DataFrame([self._row(one, spelling) for one in self.heard])

    def _row(self, one: HeardClip, spelling: dict[str, Normaliser]) -> dict[str, Any]:
        clip = one.clip
        language = one.language or clip.language
        normalise = _spelling(language or "en", spelling)
        words = count_word_errors("", one.heard, normalise).insertions
        row: dict[str, Any] = {
            "clip": clip.id,
            "group": clip.group,
            "language": language,
            "text": clip.text,
            "heard": one.heard,
            "words": words,
        }
        if clip.text is not None:
            counts = count_word_errors(clip.text, one.heard, normalise)
            row |= {"errors": counts.errors, "said": counts.said}
        if self.monitors:
            flagged = any(one.flagged)
            row |= {"words_kept": 0 if flagged else words, "flagged": flagged}
        scores = zip(self.monitors, one.scores, strict=True)
        return {**clip.labels, **row, **{f"{name} score": score for name, score in scores}}


def _spelling(language: str, known: dict[str, Normaliser]) -> Normaliser:
    if language not in known:
        try:
            known[language] = normaliser(language)
        except LanguageError:
            known[language] = normaliser("en")
    return known[language]
