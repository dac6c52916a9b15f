"""What steering by features changes in transcripts: tables, curves, and a page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from hooked_asr.concepts import ConceptEffect
from hooked_asr.concepts.effect_plot import effect_figure
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.sae.steering.report import write_report

_ACROSS = {"clamp": "value that features are set to", "add": "value added", "scale": "times"}


@dataclass(frozen=True, eq=False)
class SteerSweep:
    """Transcripts with features changed, and without.

    - `effect`: every clip, and what is heard under every edit; see `concepts.ConceptEffect`.
    - `how`, `site`: what was done to `features`, and where; `together`, to all of them at once.
    """

    effect: ConceptEffect
    how: str
    site: str
    features: list[int]
    together: bool = False

    def to_pandas(self, language: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """One row for each feature, or set, and strength; see `ConceptEffect.to_pandas`.

        Among them `with_text`, the share of clips in which anything is heard, and of the
        `language` asked for the share `identified` as it, and its mean `probability`.
        """
        return self.effect.to_pandas(language, level)

    def languages(self) -> pd.DataFrame:
        """One row for each edit and language: in how many clips it is told."""
        return self.effect.languages()

    def by_clip(self) -> pd.DataFrame:
        """One row for each edit and clip: what is heard before and after."""
        return self.effect.by_clip()

    def plot(self, language: str | None = None, level: float = 0.95) -> alt.ConcatChart:
        """Curves over strength of a colour for each feature, in bands of their intervals."""
        n = len(self.effect.clips)
        told = f"{Path(self.effect.model).name}, {self.site}; {level:.0%} intervals over {n} clips"
        return effect_figure(
            self.to_pandas(language, level),
            f"What it does to {self.how} features",
            told,
            language,
            _ACROSS.get(self.how, "strength"),
            "features" if self.together else "feature",
        )

    def report(self, path: str | os.PathLike[str], language: str | None = None) -> None:
        """A page (.html) with the table, the figure, and transcripts that change.

        Raises `ResultError` for another suffix.
        """
        write_report(self, path, language)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteerSweep:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            effect = ConceptEffect.of_plain(found.pop("effect"))
            return cls(effect, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved sweep of features: {error!r}") from error
