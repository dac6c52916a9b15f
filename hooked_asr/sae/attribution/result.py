"""What each feature does for a metric, position by position."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from hooked_asr.patching.agreement import Agreement
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.timing import FRAMES, seconds
from hooked_asr.viz.bars import bars
from hooked_asr.viz.curves import in_rows


@dataclass(frozen=True, eq=False)
class FeatureAttribution:
    """Estimated effects on a metric of changing each feature at each position.

    - `positions`, `features`, `active`, `target`, `effects`: side by side, one for each feature and
      position where it is active or is to be: how active it is, what it becomes, and by how much
      that moves the metric.
    - `errors`: for each position, the effect of what the autoencoder leaves out.
    - `exact`: of some features, how far the metric moves when they change at every position.
    - `clean`: the metric of the run. `tokens`: the text at each position, in a decoder.
    """

    positions: list[int]
    features: list[int]
    active: list[float]
    target: list[float]
    effects: list[float]
    errors: list[float]
    exact: dict[int, float]
    clean: float
    metric: str
    method: str
    site: str
    clock: str
    model: str
    tokens: list[str] | None = None

    @property
    def error(self) -> float:
        """The effect of all that the autoencoder leaves out."""
        return math.fsum(self.errors)

    @property
    def total(self) -> float:
        """Of all features and what they leave out: the site changed as a whole."""
        return math.fsum(self.effects) + self.error

    def place(self, position: int) -> str:
        """A position in words: when it hears, or its token."""
        if self.clock in FRAMES:
            return f"{seconds(position, self.clock)[0]:.2f} s"
        return str(position) if self.tokens is None else f"{position} {self.tokens[position]!r}"

    def to_pandas(self) -> pd.DataFrame:
        """One row for each feature and position, the greatest effects first.

        `start` and `end` (s) where positions are moments, `token` where they are tokens. The row of
        feature -1 at a position is what the autoencoder leaves out there.
        """
        table = pd.DataFrame(
            {
                "feature": [*self.features, *[-1] * len(self.errors)],
                "position": [*self.positions, *range(len(self.errors))],
                "active": [*self.active, *[math.nan] * len(self.errors)],
                "target": [*self.target, *[math.nan] * len(self.errors)],
                "effect": [*self.effects, *self.errors],
            }
        )
        if self.clock in FRAMES:
            times = [seconds(int(position), self.clock) for position in table["position"]]
            table["start"], table["end"] = ([time[i] for time in times] for i in (0, 1))
        if self.tokens is not None:
            table["token"] = [self.tokens[position] for position in table["position"]]
        return _greatest_first(table)

    def by_feature(self) -> pd.DataFrame:
        """One row for each feature, its effects at all positions added up, the greatest first.

        `positions`: at how many; `peak`: where it does most. `exact`, where it was measured.
        """
        table = pd.DataFrame(
            {"feature": self.features, "position": self.positions, "effect": self.effects}
        )
        if table.empty:
            return pd.DataFrame(columns=["feature", "effect", "positions", "peak", "exact"])
        table["size"] = table["effect"].abs()
        grouped = table.groupby("feature")
        peaks = table.loc[grouped["size"].idxmax(), "position"].to_numpy()
        found = grouped.agg(effect=("effect", "sum"), positions=("effect", "size")).reset_index()
        found["peak"] = peaks
        found["exact"] = [self.exact.get(int(one), math.nan) for one in found["feature"]]
        return _greatest_first(found)

    @property
    def agreement(self) -> Agreement:
        """The features that were changed one by one, beside their estimates."""
        known = self.by_feature().dropna(subset="exact")
        table = pd.DataFrame(
            {
                "run": 0,
                "site": [f"feature {one}" for one in known["feature"]],
                "exact": known["exact"].astype(float).to_numpy(),
                "estimate": known["effect"].astype(float).to_numpy(),
            }
        )
        return Agreement(table, f"{self._title}, changed one by one")

    def plot(self, top: int = 20) -> alt.ConcatChart:
        """Bars of the features that do most and of the error; beside, what was measured."""
        drawn = [
            (f"feature {int(one.feature)}", float(one.effect), math.nan, math.nan)
            for one in self.by_feature().head(top).itertuples()
        ]
        drawn.append(("left out (error)", self.error, math.nan, math.nan))
        charts: list[Any] = [bars(drawn, label=f"effect on {self.metric}")]
        if self.exact:
            charts.append(self.agreement.plot())
        told = f"{Path(self.model).name}, {self.site}; clean {self.clean:.3f}, "
        return in_rows(
            charts,
            columns=2,
            title=self._title,
            subtitle=f"{told}all together {self.total:+.3f}",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureAttribution:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            fields["exact"] = {int(name): value for name, value in fields["exact"].items()}
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved attribution: {error!r}") from error

    @property
    def _title(self) -> str:
        return f"{self.method} attribution to features: {self.metric}"


def _greatest_first(table: pd.DataFrame) -> pd.DataFrame:
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
