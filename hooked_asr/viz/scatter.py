"""Points: one measure against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

_SIDE = 360  # pixels


def scatter(
    points: Sequence[Mapping[str, str | int | float]],
    *,
    x: str,
    y: str,
    colour: str | None = None,
    title: str = "",
    subtitle: str = "",
) -> Any:
    """Each point at its `x` and `y`, beside the line on which both are the same.

    `colour`: a field by whose values points are told apart. Everything that a point holds shows
    under the mouse; points without finite places are left out.

    >>> chart = scatter([{"exact": 1.0, "estimate": 0.9}], x="exact", y="estimate")
    >>> len(chart.to_dict()["layer"])
    2
    """
    drawn = [dict(one) for one in points if math.isfinite(one[x]) and math.isfinite(one[y])]  # type: ignore[arg-type]
    reach = [float(one[axis]) for one in drawn for axis in (x, y)] or [0.0, 1.0]
    ends = [{x: end, y: end} for end in (min(reach), max(reach))]
    places = {"x": alt.X(f"{x}:Q", title=x), "y": alt.Y(f"{y}:Q", title=y)}
    diagonal = alt.Chart(alt.Data(values=ends)).mark_line(color="lightgrey").encode(**places)
    chart = (
        alt.Chart(alt.Data(values=drawn))  # a data frame of over 5000 rows would be refused
        .mark_circle(size=40, opacity=0.7)
        .encode(**places, tooltip=[_tip(name, value) for name, value in (drawn or ends)[0].items()])
    )
    if colour is not None:
        chart = chart.encode(color=alt.Color(f"{colour}:N", title=colour, sort=None))
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start")
    return alt.layer(diagonal, chart).properties(width=_SIDE, height=_SIDE, title=heading)


def _tip(name: str, value: str | int | float) -> alt.Tooltip:
    if isinstance(value, float):
        return alt.Tooltip(f"{name}:Q", format=".4f")
    return alt.Tooltip(f"{name}:N")
