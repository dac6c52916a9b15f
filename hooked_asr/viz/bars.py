"""Bars with an interval around the end of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt

_THICK, _WIDTH = 18, 420  # pixels of a bar, and of the longest

Bar = tuple[str, float, float, float]  # name, value, low and high end of its interval


def bars(
    drawn: Sequence[Bar], *, label: str, title: str = "", subtitle: str = ""
) -> alt.LayerChart:
    """Horizontal bars, the first at the top, each with a line over its interval.

    An interval without finite ends is left out. Bars tell their numbers under the mouse.

    >>> chart = bars([("a", 1.0, 0.5, 1.5), ("b", -2.0, -2.5, -1.0)], label="change")
    >>> len(chart.layer)
    2
    """
    rows = [
        {"name": name, label: _finite(value), "low": _finite(low), "high": _finite(high)}
        for name, value, low, high in drawn
    ]
    place = alt.Y("name:N", sort=[name for name, *_ in drawn], title=None)
    numbers = [alt.Tooltip(f"{name}:Q", format=".4f") for name in (label, "low", "high")]
    base = alt.Chart(alt.Data(values=rows)).encode(y=place, tooltip=["name:N", *numbers])
    middle = base.mark_bar(color="#9ecae1").encode(x=alt.X(f"{label}:Q", title=label))
    interval = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=2)
        .encode(x="low:Q", x2="high:Q")
    )
    return alt.layer(middle, interval).properties(
        width=_WIDTH,
        height=_THICK * max(1, len(rows)),
        title=alt.TitleParams(title, subtitle=subtitle, anchor="start"),
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
