"""The numbers of a sweep, with what they mean."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.heatmap import heatmap


@dataclass(frozen=True, eq=False)
class SweepResult:
    """One number for each site of a sweep.

    - `values`: the metric with the intervention at that site, over `axes` (name -> labels).
    - `clean`, `reference`: the metric of the untouched runs; `reference` is NaN without one.
    - `sites`: short names, in row-major order of `values`.
    - `tokens`: the text of each decoder position, where the model has a tokenizer.
    - `plain`: the sites that were run each in a whole forward (or decoding) of its own, because
      what their hooks do could not be placed.
    """

    values: Float[Tensor, "..."]
    axes: dict[str, list[str | int]]
    sites: list[str]
    clean: float
    reference: float
    metric: str
    operation: str
    alpha: float
    model: str
    tokens: list[str] | None = None
    plain: list[str] = field(default_factory=list)

    @property
    def change(self) -> Float[Tensor, "..."]:
        """How far each intervention moves the metric from the clean run."""
        return self.values - self.clean

    @property
    def normalized(self) -> Float[Tensor, "..."]:
        """The change as a share of that from clean to reference run: 0 nothing, 1 all of it.

        NaN where there is no reference, or it has the clean run's value.
        """
        return self.change / (self.reference - self.clean or math.nan)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site: its axes, name, value, change, and normalized change."""
        index = pd.MultiIndex.from_product(self.axes.values(), names=list(self.axes))
        table = index.to_frame(index=False)
        table["site"] = self.sites
        for name, tensor in self._shown().items():
            table[name] = tensor.flatten().double().numpy()
        if table["normalized"].isna().all():
            table = table.drop(columns="normalized")
        if self._token_axis:
            table["token"] = [(self.tokens or [])[position] for position in table["position"]]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """The `k` sites that move the metric most, strongest first."""
        table = self.to_pandas()
        order = table["change"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order[:k]].reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the heatmap (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            numbers = np.array(fields.pop("values"), dtype=float)  # null becomes NaN
            for name in ("clean", "reference"):
                fields[name] = math.nan if fields[name] is None else fields[name]
            return cls(values=torch.from_numpy(numbers).float(), **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved sweep: {error!r}") from error

    def plot(self, what: str = "change") -> alt.FacetChart | alt.Chart:
        """A heatmap of "change", "value" or "normalized", as an Altair chart (see also `save`).

        Raises `ResultError` for anything else, or where there are no numbers to show.
        """
        shown = self._shown()
        if what not in shown:
            raise ResultError(f"a plot is of {', '.join(shown)}; got {what!r}")
        values = shown[what]
        if values.isnan().all():
            raise ResultError(f"there is nothing to plot: every {what} of this result is NaN")
        axes = dict(self.axes)
        if self._token_axis:
            axes["position"] = [f"{p} {(self.tokens or [])[int(p)]}" for p in axes["position"]]
        return heatmap(
            values,
            axes,
            label=what,
            title=f"{self.operation}: {self.metric}",
            subtitle=f"{Path(self.model).name}; clean {self.clean:.3f}"
            + ("" if math.isnan(self.reference) else f", reference {self.reference:.3f}"),
            centred=what != "value",
        )

    def _shown(self) -> dict[str, Float[Tensor, "..."]]:
        return {"value": self.values, "change": self.change, "normalized": self.normalized}

    @property
    def _token_axis(self) -> bool:
        """Whether positions are single tokens whose text is known."""
        positions = self.axes.get("position", ["-"])
        return bool(self.tokens) and all(isinstance(p, int) for p in positions)

    def _plain(self) -> dict[str, Any]:
        return asdict(self) | {"values": self.values.double().tolist()}
