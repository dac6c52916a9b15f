"""How well estimates of a sweep agree with the sweep itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.scatter import scatter


@dataclass(frozen=True, eq=False)
class Agreement:
    """The changes of a sweep and an estimate of them, site by site.

    `table`: a row for each site: `run` (which of several results it is of), `site`, and the changes
    `exact` and `estimate`. `title` says what was estimated.
    """

    table: pd.DataFrame
    title: str

    @property
    def pearson(self) -> float:
        """How nearly the changes lie on one rising line: 1, exactly. NaN where one never varies."""
        return _correlation(self.table["exact"], self.table["estimate"])

    @property
    def spearman(self) -> float:
        """The same of the changes' ranks: how nearly they come in the same order."""
        return _correlation(self.table["exact"].rank(), self.table["estimate"].rank())

    def plot(self) -> Any:
        """Estimates over exact changes, as an Altair chart (see also `save`)."""
        several = self.table["run"].nunique() > 1
        points: list[dict[Any, Any]] = self.table.to_dict("records")
        return scatter(
            points,
            x="exact",
            y="estimate",
            colour="run" if several else None,
            title=self.title,
            subtitle=f"Pearson {self.pearson:.3f}, Spearman {self.spearman:.3f}, "
            f"{len(self.table)} sites",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, lambda: self.table, self.plot)

    def _plain(self) -> dict[str, Any]:
        numbers = {"pearson": self.pearson, "spearman": self.spearman}
        return {"title": self.title, **numbers, "sites": self.table.to_dict("records")}


def compare(
    exact: SweepResult | Sequence[SweepResult], estimate: SweepResult | Sequence[SweepResult]
) -> Agreement:
    """A sweep beside an `attribution` of the same sites; several of each are pooled.

    Raises `ResultError` for results of other sites.
    """
    exacts = [exact] if isinstance(exact, SweepResult) else list(exact)
    estimates = [estimate] if isinstance(estimate, SweepResult) else list(estimate)
    if len(exacts) != len(estimates) or not exacts:
        raise ResultError(
            f"each sweep is compared with one estimate; got {len(exacts)} and {len(estimates)}"
        )
    tables = [
        _table(i, one, other) for i, (one, other) in enumerate(zip(exacts, estimates, strict=True))
    ]
    title = f"{estimates[0].operation}: {estimates[0].metric}; {Path(estimates[0].model).name}"
    return Agreement(pd.concat(tables, ignore_index=True), title)


def _table(run: int, exact: SweepResult, estimate: SweepResult) -> pd.DataFrame:
    if exact.sites != estimate.sites:
        raise ResultError(
            f"the sweep has {len(exact.sites)} sites from {exact.sites[0]} on, the estimate "
            f"{len(estimate.sites)} from {estimate.sites[0]} on: compare results of the same sites"
        )
    changes = {
        name: result.change.flatten().double().numpy()
        for name, result in (("exact", exact), ("estimate", estimate))
    }
    return pd.DataFrame({"run": run, "site": exact.sites, **changes})


def _correlation(a: pd.Series[float], b: pd.Series[float]) -> float:
    if len(a) < 2 or a.nunique() < 2 or b.nunique() < 2:
        return math.nan
    return float(a.corr(b))
