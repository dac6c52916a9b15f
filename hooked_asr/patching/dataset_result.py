"""What each site does over many recordings: every number, and means with their intervals."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.bootstrap import Means, bootstrap_means
from hooked_asr.files import written_aside
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.bars import bars
from hooked_asr.viz.figure import save as save_figure
from hooked_asr.viz.heatmap import heatmap
from hooked_asr.viz.panels import side_by_side

_SHOWN = ("change", "normalized")


@dataclass(frozen=True)
class SweptPair:
    """A pair that was swept: its recording, what was patched in, the text forced on both."""

    id: str
    audio: str
    reference: str | None
    text: str
    metric: str
    group: str | None = None


@dataclass(frozen=True, eq=False)
class SweptSites:
    """One grid of sites, row-major over `axes` (name -> labels), on every pair.

    - `values`: the metric with the intervention at that site, `[pair *axes]`.
    - `clean`, `reference`: the metric of each pair's untouched runs; NaN without a reference.
    """

    name: str
    axes: dict[str, list[str | int]]
    sites: list[str]
    values: Float[Tensor, "pair ..."]
    clean: Float[Tensor, " pair"]
    reference: Float[Tensor, " pair"]

    @property
    def change(self) -> Float[Tensor, "pair ..."]:
        """How far each intervention moves the metric from the pair's clean run."""
        return self.values - self._by_pair(self.clean)

    @property
    def normalized(self) -> Float[Tensor, "pair ..."]:
        """The change as a share of that from the pair's clean to its reference run.

        NaN where there is no reference, or it has the clean run's value.
        """
        whole = self.reference - self.clean
        return self.change / self._by_pair(torch.where(whole == 0, math.nan, whole))

    def _by_pair(self, numbers: Float[Tensor, " pair"]) -> Float[Tensor, "pair ..."]:
        return numbers.reshape(-1, *[1] * len(self.axes))


@dataclass(frozen=True, eq=False)
class DatasetResult:
    """One number for each pair and site, for each grid of sites.

    `failed`: why there is none, for the pairs that were skipped. `seed` also draws the resamples.
    """

    pairs: list[SweptPair]
    swept: list[SweptSites]
    operation: str
    alpha: float
    seed: int
    model: str
    failed: dict[str, str] = field(default_factory=dict)

    def means(
        self, sites: SweptSites, what: str = "change", level: float = 0.95, method: str = "bca"
    ) -> Means:
        """The mean over pairs of "change" or "normalized" at each site, `[*axes]`.

        Intervals are bootstrapped over pairs, or over their groups, where they have any (a pair
        without one is a group of its own); see `bootstrap_means`.
        """
        if what not in _SHOWN:
            raise ResultError(f"means are of {' or '.join(_SHOWN)}; got {what!r}")
        numbers = (sites.change if what == "change" else sites.normalized).numpy()
        return bootstrap_means(numbers, self._groups, level=level, method=method, seed=self.seed)

    def to_pandas(self, level: float = 0.95, method: str = "bca") -> pd.DataFrame:
        """One row for each site: its axes, name, and means over pairs with their intervals.

        `n`: how many pairs the mean change is over, `n_normalized`: the mean normalized change
        (the mean of each pair's share), where its reference says anything.
        """
        tables = [self._table(sites, level, method) for sites in self.swept]
        table = self._joined(tables)
        if table["normalized"].isna().all():
            table = table.drop(columns=[name for name in table if "normalized" in name])
        return table

    def by_pair(self) -> pd.DataFrame:
        """One row for each pair and site: value, clean, reference, change, normalized change."""
        return self._joined([self._pair_table(sites) for sites in self.swept])

    def top(self, k: int = 10, level: float = 0.95, method: str = "bca") -> pd.DataFrame:
        """The `k` sites that move the metric most on the whole, strongest first."""
        table = self.to_pandas(level, method)
        order = table["change"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order[:k]].reset_index(drop=True)

    def plot(self, what: str = "change") -> alt.HConcatChart:
        """A heatmap of mean "change" or "normalized" for each grid, beside each other.

        Raises `ResultError` for anything else, or where there are no numbers to show.
        """
        panels = []
        for sites in self.swept:
            mean = torch.from_numpy(self.means(sites, what).mean)
            if mean.isnan().all():
                raise ResultError(f"there is nothing to plot: every {what} of this result is NaN")
            panels.append(heatmap(mean, sites.axes, label=f"mean {what}", title=sites.name))
        return side_by_side(panels, title=self._title, subtitle=self._subtitle)

    def plot_top(self, k: int = 20, level: float = 0.95, method: str = "bca") -> alt.LayerChart:
        """Bars of the `k` sites that move the metric most, each with its interval."""
        columns = ["site", "change", "change_low", "change_high"]
        rows = self.top(k, level, method)[columns].itertuples(index=False)
        about = f"mean change, and its {level:.0%} interval"
        subtitle = f"{self._subtitle}; {about}"
        return bars(
            list(map(tuple, rows)), label="mean change", title=self._title, subtitle=subtitle
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the heatmaps (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    def save_pairs(self, path: str | os.PathLike[str]) -> None:
        """Write every pair's numbers as a table (.csv)."""
        with written_aside(path) as aside:
            self.by_pair().to_csv(aside, index=False)

    def save_top(self, path: str | os.PathLike[str], k: int = 20) -> None:
        """Write the bars of the `k` strongest sites (.html, .png, .svg, .pdf)."""
        save_figure(self.plot_top(k), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DatasetResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            pairs = [SweptPair(**one) for one in fields.pop("pairs")]
            swept = [_swept(one) for one in fields.pop("swept")]
            return cls(pairs=pairs, swept=swept, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved sweep of a dataset: {error!r}") from error

    @property
    def _groups(self) -> list[Hashable] | None:
        if all(pair.group is None for pair in self.pairs):
            return None
        return [(pair.group, "" if pair.group is not None else pair.id) for pair in self.pairs]

    @property
    def _title(self) -> str:
        metrics = list(dict.fromkeys(pair.metric for pair in self.pairs))
        return f"{self.operation}: {metrics[0]}" + (", and others" if len(metrics) > 1 else "")

    @property
    def _subtitle(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{Path(self.model).name}; {len(self.pairs)} pairs{failed}"

    def _joined(self, tables: list[pd.DataFrame]) -> pd.DataFrame:
        """The tables of all grids under each other, whatever axes each has."""
        joined = pd.concat(tables, ignore_index=True)
        axes = list(dict.fromkeys(name for sites in self.swept for name in sites.axes))
        at = joined.columns.get_loc(axes[0])
        others = [name for name in joined if name not in axes]
        return joined[[*others[:at], *axes, *others[at:]]]

    def _table(self, sites: SweptSites, level: float, method: str) -> pd.DataFrame:
        table = _index(sites)
        for what in _SHOWN:
            about = self.means(sites, what, level, method)
            table[what] = about.mean.ravel()
            table[f"{what}_low"], table[f"{what}_high"] = about.low.ravel(), about.high.ravel()
            table["n" if what == "change" else "n_normalized"] = about.n.ravel()
        return table

    def _pair_table(self, sites: SweptSites) -> pd.DataFrame:
        index = _index(sites)
        table = pd.concat([index] * len(self.pairs), ignore_index=True)
        for name in ("group", "id"):
            column = [getattr(pair, name) for pair in self.pairs]
            table.insert(0, name, np.repeat(np.array(column, dtype=object), len(index)))
        table["value"] = sites.values.flatten().numpy()
        for name in ("clean", "reference"):
            table[name] = np.repeat(getattr(sites, name).numpy(), len(index))
        for name in _SHOWN:
            table[name] = getattr(sites, name).flatten().numpy()
        return table

    def _plain(self) -> dict[str, Any]:
        swept = [
            vars(one) | {name: getattr(one, name).tolist() for name in _TENSORS}
            for one in self.swept
        ]
        return vars(self) | {"pairs": [asdict(pair) for pair in self.pairs], "swept": swept}


_TENSORS = ("values", "clean", "reference")


def _index(sites: SweptSites) -> pd.DataFrame:
    """The places of a grid, one row each; axes that other grids do not have stay whole numbers."""
    index = pd.MultiIndex.from_product(sites.axes.values(), names=list(sites.axes))
    table = index.to_frame(index=False).convert_dtypes()
    table["sites"], table["site"] = sites.name, sites.sites
    return table


def _swept(fields: dict[str, Any]) -> SweptSites:
    for name in _TENSORS:
        fields[name] = torch.from_numpy(np.array(fields[name], dtype=float))  # null becomes NaN
    return SweptSites(**fields)
