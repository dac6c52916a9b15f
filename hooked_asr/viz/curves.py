"""Curves with the interval around each, told apart by colour and by dashes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

_WIDTH, _HEIGHT = 340, 210  # pixels of a panel

Row = Mapping[str, str | int | float]


def curves(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    colour: str,
    dash: str | None = None,
    marks: Sequence[Row] = (),
    bounds: tuple[float, float] | None = None,
    log: bool = False,
    title: str = "",
) -> alt.LayerChart:
    """A line through `y` over `x`, for each value of `colour` and of `dash`.

    Rows may have "low" and "high": the ends of an interval, drawn as a band. `marks` are places on
    the x axis, of a colour each, drawn as upright dashed lines. Points without a finite value are
    left out. `bounds`: of the y axis; `log`: logarithmic but for its first step from zero. Numbers
    on the x axis are a scale, texts are places in the order in which they come.

    >>> rows = [{"layer": at, "probability": at / 2, "language": "en"} for at in range(3)]
    >>> chart = curves(rows, x="layer", y="probability", colour="language")
    >>> len(chart.to_dict()["layer"])
    2
    """
    drawn = [_plain(row) for row in rows if math.isfinite(float(row[y]))]
    kind = alt.Scale(type="symlog") if log else alt.Scale(zero=False)
    scale = alt.Scale(domain=list(bounds)) if bounds else kind
    colours = list(dict.fromkeys(row[colour] for row in rows))
    across = _across(x, [row[x] for row in rows])
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2)
    paint = alt.Color(f"{colour}:N", title=colour, scale=alt.Scale(domain=colours), legend=legend)
    tips = [_tip(name, value) for name, value in (drawn or [{}])[0].items()]
    base = alt.Chart(alt.Data(values=drawn)).encode(x=across, color=paint, tooltip=tips)
    line = base.mark_line(point=dash is None)
    if dash is not None:
        order: Any = list(dict.fromkeys(row[dash] for row in rows))
        dashes = alt.StrokeDash(f"{dash}:N", title=dash, sort=order, legend=legend)
        base, line = base.encode(detail=f"{dash}:N"), line.encode(strokeDash=dashes)
    band = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_area(opacity=0.2)
    layers = [
        band.encode(y=alt.Y("low:Q", title=y, scale=scale), y2="high:Q"),
        line.encode(y=alt.Y(f"{y}:Q", title=y, scale=scale)),
    ]
    if marks:
        places = alt.Chart(alt.Data(values=[_plain(mark) for mark in marks]))
        upright = places.mark_rule(strokeDash=[6, 4], strokeWidth=2)
        tips = [_tip(name, value) for name, value in marks[0].items()]
        layers.append(upright.encode(x=across, color=paint, tooltip=tips))
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def in_rows(
    charts: Sequence[Any], *, columns: int, title: str, subtitle: str = ""
) -> alt.ConcatChart:
    """Charts in rows of so many under one title; colours that mean the same share one legend."""
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start")
    return alt.concat(*charts, columns=columns).properties(title=heading)


def _across(x: str, values: Sequence[Any]) -> alt.X:
    if any(isinstance(value, str) for value in values):
        places = list(dict.fromkeys(map(str, values)))
        return alt.X(f"{x}:O", title=x, sort=places, axis=alt.Axis(labelAngle=0))
    return alt.X(f"{x}:Q", title=x, axis=alt.Axis(tickMinStep=1))


def _plain(row: Row) -> dict[str, str | int | float | None]:
    """Without NaN and infinity, which a chart does not take."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _tip(name: str, value: Any) -> alt.Tooltip:
    if isinstance(value, float):
        return alt.Tooltip(f"{name}:Q", format=".4f")
    return alt.Tooltip(f"{name}:N")
