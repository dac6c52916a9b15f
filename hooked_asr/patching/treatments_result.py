"""What recordings became under each treatment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.bars import bars
from hooked_asr.viz.panels import side_by_side

_MEASURES = {"wer": "word error rate", "loops": "clips that loop", "changed": "transcripts changed"}


@dataclass(frozen=True)
class Treated:
    """What is heard in one clip under one treatment.

    `looping`: whether it says anything more often in a row than was said, and than loops do at
    least; `wer`: word error rate, where it is known what was said.
    """

    text: str
    n_tokens: int
    looping: bool
    wer: float | None = None


@dataclass(frozen=True, eq=False)
class TreatmentResult:
    """Each arm's outcomes, clip by clip; the first arm is what others are compared with.

    `groups`: what is drawn together for intervals (a speaker); a clip without one is its own.
    """

    clips: list[str]
    groups: list[str | None]
    said: list[str | None]
    arms: dict[str, list[Treated]]
    model: str

    def to_pandas(self, *, level: float = 0.95) -> pd.DataFrame:
        """One row for each arm: means over clips, and both ends of their bootstrap intervals.

        `wer` (of clips with a text), `loops` and `empty` (shares of clips), `changed` (transcripts
        that are not the first arm's).
        """
        rows = []
        for arm, values in self._values().items():
            row: dict[str, Any] = {"arm": arm, "clips": len(self.clips)}
            for name, column in values.items():
                about = bootstrap_means(column, self._drawn_together, level=level)
                row[name] = float(about.mean)
                row[f"{name}_low"], row[f"{name}_high"] = float(about.low), float(about.high)
            rows.append(row)
        return pd.DataFrame(rows)

    def differences(self, arm: str, other: str, *, level: float = 0.95) -> pd.DataFrame:
        """How far one arm lies above another, clip by clip: mean, and ends of its interval.

        Raises `ResultError` for an arm that there is not.
        """
        values = self._values()
        for name in (arm, other):
            if name not in values:
                raise ResultError(f"arms are {', '.join(values)}; got {name!r}")
        rows = []
        for name in ("wer", "loops", "empty"):
            gaps = values[arm][name] - values[other][name]
            about = bootstrap_means(gaps, self._drawn_together, level=level)
            ends = {"low": float(about.low), "high": float(about.high)}
            rows.append({"measure": name, "difference": float(about.mean), **ends})
        return pd.DataFrame(rows)

    def by_clip(self) -> pd.DataFrame:
        """One row for each arm and clip."""
        return pd.DataFrame(
            [
                {"arm": arm, "clip": clip, "said": said, **asdict(one)}
                for arm, outcomes in self.arms.items()
                for clip, said, one in zip(self.clips, self.said, outcomes, strict=True)
            ]
        )

    def plot(self) -> alt.HConcatChart:
        """Bars for each arm, a panel for each measure; see also `save`."""
        table = self.to_pandas()
        panels = []
        for name, label in _MEASURES.items():
            if table[name].notna().any():
                columns = (table[one] for one in ("arm", name, f"{name}_low", f"{name}_high"))
                drawn = [(str(arm), *numbers) for arm, *numbers in zip(*columns, strict=True)]
                panels.append(bars(drawn, label=label).properties(width=200))
        subtitle = f"{Path(self.model).name}; {len(self.clips)} clips"
        return side_by_side(panels, title="Decoded under each treatment", subtitle=subtitle)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the bars (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TreatmentResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            arms = fields.pop("arms")
            return cls(arms={a: [Treated(**one) for one in of] for a, of in arms.items()}, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved treatments: {error!r}") from error

    @property
    def _drawn_together(self) -> list[Hashable]:
        return [
            (group, "" if group is not None else clip)
            for group, clip in zip(self.groups, self.clips, strict=True)
        ]

    def _values(self) -> dict[str, dict[str, np.ndarray]]:
        first = next(iter(self.arms.values()))
        return {
            arm: {
                "wer": _numbers([np.nan if one.wer is None else one.wer for one in outcomes]),
                "loops": _numbers([one.looping for one in outcomes]),
                "empty": _numbers([re.search(r"\w", one.text) is None for one in outcomes]),
                "changed": _numbers(
                    [one.text != before.text for one, before in zip(outcomes, first, strict=True)]
                ),
            }
            for arm, outcomes in self.arms.items()
        }


def _numbers(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.float64)
