"""Curves: several lines over one axis, in one panel or a row of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

_WIDTH, _HEIGHT = 320, 200  # pixels of a panel

Point = tuple[float | int | str, float | int]
# Panel -> line -> points (x, y); a lone panel may be called "".
Panels = Mapping[str, Mapping[str, Sequence[Point]]]


def lines(
    panels: Panels, *, x: str, y: str, title: str = "", log: bool = False
) -> alt.HConcatChart:
    """Lines with a legend; `x` and `y` name the axes. `log` draws values on a logarithmic scale.

    Numbers on the x axis are a scale, texts are places in the order in which they come. Points
    without a finite value are left out.

    >>> chart = lines({"": {"loss": [(1, 2.0), (2, 1.0)]}}, x="step", y="nats")
    >>> chart.to_dict()["title"]["text"]
    ''
    """
    charts = [_panel(name, drawn, x, y, log) for name, drawn in panels.items()]
    return alt.hconcat(*charts).properties(title=alt.TitleParams(title, anchor="start"))


def _panel(
    name: str,
    drawn: Mapping[str, Sequence[Point]],
    x: str,
    y: str,
    log: bool,
) -> alt.Chart:
    points = [
        {x: at, y: value, "line": line}
        for line, values in drawn.items()
        for at, value in values
        if math.isfinite(value)
    ]
    placed = any(isinstance(point[x], str) for point in points)
    order: Any = list(dict.fromkeys(point[x] for point in points)) if placed else alt.Undefined
    scale = alt.Scale(type="log" if log else "linear", zero=False)
    return (
        alt.Chart(alt.Data(values=points), title=name)
        .mark_line(point=placed)
        .encode(
            x=alt.X(f"{x}:{'O' if placed else 'Q'}", title=x, sort=order),
            y=alt.Y(f"{y}:Q", title=y, scale=scale),
            color=alt.Color("line:N", title=None, sort=list(drawn)),
            tooltip=[
                f"{x}:{'N' if placed else 'Q'}",
                "line:N",
                alt.Tooltip(f"{y}:Q", format=".4f"),
            ],
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
