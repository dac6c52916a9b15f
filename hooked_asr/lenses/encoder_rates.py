"""What becomes of many clips layer by layer, as shares with intervals, and as curves."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float64

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.viz.curves import curves, in_rows

_PANELS = {
    "empty": "clips without a word",
    "loops": "clips with a loop",
    "mistold": "clips taken for another language",
    "wer": "word error rate",
}
RATES = tuple(_PANELS)
_ALL = "all"
_ACROSS = "encoder stops behind layer"


@dataclass(frozen=True)
class Outcomes:
    """Each clip's outcome at each layer, by name; NaN where there is none.

    `groups`: what is resampled together.
    """

    layers: list[str]
    values: dict[str, Float64[np.ndarray, "clip layer"]]
    groups: list[Hashable]


def of_clips(clips: Sequence[Any]) -> Outcomes:
    """What `rates_table` counts of `ClipLens`es that have the same layers."""
    outcomes = {
        "empty": lambda clip, heard: float(heard.empty),
        "loops": lambda clip, heard: float(heard.loop is not None),
        "mistold": _mistold,
        "wer": lambda clip, heard: _finite(heard.wer),
        "cer": lambda clip, heard: _finite(heard.cer),
    }
    return Outcomes(
        layers=[one.layer for one in clips[0].layers],
        values={
            name: np.array([[of(clip, heard) for heard in clip.layers] for clip in clips])
            for name, of in outcomes.items()
        },
        groups=[(clip.group, "" if clip.group is not None else clip.name) for clip in clips],
    )


def rates_table(outcomes: Outcomes, level: float, method: str) -> pd.DataFrame:
    """One row for each layer: each outcome's mean over clips, and both ends of its interval."""
    values = np.stack(list(outcomes.values.values()), -1)
    about = bootstrap_means(values, outcomes.groups, level=level, method=method)
    columns: dict[str, Any] = {"layer": outcomes.layers, "clips": len(values)}
    for i, name in enumerate(outcomes.values):
        columns[name] = about.mean[:, i]
        columns[f"{name}_low"], columns[f"{name}_high"] = about.low[:, i], about.high[:, i]
    return pd.DataFrame(columns)


def rates_figure(
    table: pd.DataFrame, of: Sequence[str], title: str, subtitle: str
) -> alt.ConcatChart:
    """A panel for each outcome asked for, of `EncoderLens.rates`, a colour for each group."""
    group = table.columns[0] if table.columns[0] != "layer" else "clips"
    named = table[group].astype(str) if group != "clips" else [_ALL] * len(table)
    panels = []
    for name, label in ((one, _PANELS[one]) for one in of):
        rows = [
            {_ACROSS: layer, group: one, label: mean, "low": low, "high": high}
            for layer, one, mean, low, high in zip(
                *(table["layer"], named, table[name], table[f"{name}_low"], table[f"{name}_high"]),
                strict=True,
            )
        ]
        if table[name].notna().any():
            bounds = None if name == "wer" else (0.0, 1.0)
            chart = curves(rows, x=_ACROSS, y=label, colour=group, bounds=bounds)
            panels.append(chart)
    return in_rows(panels, columns=2, title=title, subtitle=subtitle)


def _mistold(clip: Any, heard: Any) -> float:
    known = heard.told is not None and clip.spoken
    return float(heard.told != clip.spoken) if known else math.nan


def _finite(number: float | None) -> float:
    return number if number is not None and math.isfinite(number) else math.nan
