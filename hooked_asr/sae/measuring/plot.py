"""Figures of what autoencoders measure up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from hooked_asr.viz.panels import side_by_side

_BINS = 40
_WIDTH, _HEIGHT = 340, 240  # pixels of a panel

Point = Mapping[str, str | float]


def densities_figure(
    density: Sequence[float], rows_with: Sequence[int], *, title: str, subtitle: str = ""
) -> alt.HConcatChart:
    """Histograms of features by density, on a logarithmic scale, and of positions by features.

    >>> chart = densities_figure([0.0, 0.1, 0.01], [0, 3, 1], title="three features")
    >>> len(chart.hconcat)
    2
    """
    logs = [math.log10(one) for one in density if one > 0]
    by_density = _histogram(logs, "log10 of the share of positions", "features")
    return side_by_side([by_density, _counted(rows_with)], title=title, subtitle=subtitle)


def frontier_figure(
    points: Sequence[Point], panels: Sequence[tuple[str, str]], *, title: str, subtitle: str = ""
) -> alt.HConcatChart:
    """Autoencoders as points over L0, a panel for each (measure, label), intervals as lines.

    A point has "name", and of each measure, and of "l0", the value, `_low` and `_high`; in a panel
    whose measure it lacks it does not show.
    """
    charts = [_panel(points, measure, label) for measure, label in panels]
    return side_by_side(charts, title=title, subtitle=subtitle)


def _histogram(values: Sequence[float], x: str, y: str) -> alt.Chart:
    counts, edges = np.histogram(values, bins=_BINS) if values else (np.zeros(0), np.zeros(1))
    drawn = [
        {x: float(low), "to": float(high), y: int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return _bars(drawn, x, y)


def _counted(counts: Sequence[int]) -> alt.Chart:
    """A bar for each number, or for as many neighbours as make no more than a hundred bars."""
    x, y = "active features", "positions"
    step = 1 + len(counts) // 100
    drawn = [
        {x: float(at), "to": float(at + step), y: int(sum(counts[at : at + step]))}
        for at in range(0, len(counts), step)
    ]
    return _bars(drawn, x, y)


def _bars(drawn: Sequence[Mapping[str, float | int]], x: str, y: str) -> alt.Chart:
    across = alt.X(f"{x}:Q", title=x, scale=alt.Scale(zero=False))
    bars: alt.Chart = (
        alt.Chart(alt.Data(values=[dict(one) for one in drawn]))
        .mark_bar(color="#9ecae1")
        .encode(
            x=across,
            x2="to:Q",
            y=alt.Y(f"{y}:Q", title=y),
            y2=alt.datum(0),
            tooltip=[f"{x}:Q", f"{y}:Q"],
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    return bars


def _panel(points: Sequence[Point], measure: str, label: str) -> alt.LayerChart:
    drawn = [
        {name: _plain(value) for name, value in one.items()}
        for one in points
        if math.isfinite(float(one[measure]))
    ]
    names: Any = [one["name"] for one in points]
    x = alt.X("l0:Q", title="active features (L0)", scale=alt.Scale(zero=False))
    y = alt.Y(f"{measure}:Q", title=label, scale=alt.Scale(zero=False))
    paint = alt.Color("name:N", title=None, scale=alt.Scale(domain=names))
    tips = [
        alt.Tooltip("name:N"),
        *(alt.Tooltip(f"{one}:Q", format=".4f") for one in ("l0", measure)),
    ]
    base = alt.Chart(alt.Data(values=drawn)).encode(color=paint)
    upright = base.transform_filter(f"isValid(datum['{measure}_low'])").mark_rule()
    level = base.transform_filter("isValid(datum.l0_low)").mark_rule()
    return alt.layer(
        upright.encode(x=x, y=alt.Y(f"{measure}_low:Q", title=label), y2=f"{measure}_high:Q"),
        level.encode(x=alt.X("l0_low:Q", title="active features (L0)"), x2="l0_high:Q", y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, tooltip=tips),
    ).properties(width=_WIDTH, height=_HEIGHT)


def _plain(value: str | float) -> str | float | None:
    return value if isinstance(value, str) or math.isfinite(value) else None
