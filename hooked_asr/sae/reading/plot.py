"""Figures of a reading: how well features tell labels, and where one of them is active."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from hooked_asr.sae.reading.excerpts import Excerpt
from hooked_asr.viz.curves import in_rows

_STEP = 0.05  # of F1
_COLOURS = ("#1f77b4", "#999999", "#e6994c")
_LANE = 0.22  # of the height of an activation
_SECOND, _TALL = 230, 90  # pixels


def scores_figure(
    scores: Mapping[str, Sequence[float]], *, title: str, subtitle: str = ""
) -> alt.ConcatChart:
    """Histograms of F1, one under the other on the same axes.

    >>> chart = scores_figure({"features": [0.9, 0.2], "shuffled": [0.1]}, title="phone")
    >>> len(chart.to_dict()["concat"])
    2
    """
    edges = np.arange(0, 1 + _STEP, _STEP)
    counted = {name: np.histogram(own, bins=edges)[0] for name, own in scores.items()}
    most = max((int(one.max()) for one in counted.values()), default=1)
    charts: list[alt.Chart] = []
    for (name, counts), colour in zip(counted.items(), _COLOURS, strict=False):
        last = len(charts) == len(counted) - 1
        charts.append(_histogram(name, counts, edges, most, colour, last))
    return in_rows(charts, columns=1, title=title, subtitle=subtitle)


def excerpts_figure(
    excerpts: Sequence[Excerpt], *, title: str, subtitle: str = "", columns: int = 3
) -> alt.ConcatChart:
    """An excerpt a panel: the activation over time, and what is heard, in a lane for each kind.

    In a decoder, a bar for each token.
    """
    most = max((max(one.curve) for one in excerpts), default=1.0)
    charts = [_tokens(one) if one.span is None else _frames(one, most) for one in excerpts]
    return in_rows(charts, columns=columns, title=title, subtitle=subtitle)


# --- Panels ---------------------------------------------------------------------------------------


def _histogram(
    name: str, counts: np.ndarray, edges: np.ndarray, most: int, colour: str, last: bool
) -> alt.Chart:
    drawn = [
        {"F1": float(low), "to": float(high), "features": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    # Most features tell nothing: on an even scale the few that do would not show.
    tall = alt.Scale(type="sqrt", domain=[0, most])
    across = alt.Scale(domain=[0, 1])
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=drawn), title=alt.TitleParams(name, anchor="start", fontSize=11))
        .mark_bar(color=colour, binSpacing=1)
        .encode(
            x=alt.X("F1:Q", scale=across, title="F1" if last else None, bin="binned"),
            x2="to:Q",
            y=alt.Y("features:Q", scale=tall, title="features", axis=alt.Axis(tickCount=4)),
            tooltip=["F1:Q", "to:Q", "features:Q"],
        )
        .properties(width=420, height=80)
    )
    return chart


def _frames(one: Excerpt, most: float) -> alt.LayerChart:
    begin, end = one.span or (0.0, 0.0)
    step = (end - begin) / len(one.curve)
    drawn = [
        {"from": begin + i * step, "to": begin + (i + 1) * step, "activation": value}
        for i, value in enumerate(one.curve)
    ]
    lanes = _lanes(one, begin, end, most)
    low = -_LANE * most * len({own["lane"] for own in lanes})
    across = alt.X("from:Q", title="s", scale=alt.Scale(domain=[begin, end], nice=False))
    up = alt.Scale(domain=[low, most], nice=False)
    y = alt.Y("activation:Q", title="activation", scale=up, axis=alt.Axis(values=[0, _below(most)]))
    bars = alt.Chart(alt.Data(values=drawn)).mark_bar(color="#1f77b4", stroke="#1f77b4")
    boxes = alt.Chart(alt.Data(values=lanes))
    box = boxes.mark_rect(fill="#f3f3f3", stroke="#aaaaaa", strokeWidth=0.5)
    box = box.encode(x=across, x2="to:Q", y=alt.Y("lane:Q", scale=up), y2="top:Q")
    text = boxes.mark_text(fontSize=10, clip=True).encode(
        x="middle:Q", y="centre:Q", text="label:N"
    )
    return alt.layer(
        bars.encode(x=across, x2="to:Q", y=y, y2=alt.datum(0)), box, text, title=_title(one)
    ).properties(width=round(_SECOND * (end - begin)), height=_TALL)


def _lanes(one: Excerpt, begin: float, end: float, most: float) -> list[dict[str, str | float]]:
    kinds = [own for own in one.aligned.values() if own]
    rows: list[dict[str, str | float]] = []
    for i, own in enumerate(kinds):
        low, top = -_LANE * most * (i + 1), -_LANE * most * i
        for heard in own:
            first, stop = max(heard.start, begin), min(heard.end, end)
            middle, centre = (first + stop) / 2, (low + top) / 2
            place = {"from": first, "to": stop, "middle": middle}
            rows.append({**place, "lane": low, "top": top, "centre": centre, "label": heard.label})
    return rows


def _tokens(one: Excerpt) -> alt.Chart:
    said = one.tokens or []
    drawn = [
        {"at": i, "token": f"{i} {text}", "activation": value}
        for i, (text, value) in enumerate(zip(said, one.curve, strict=True))
    ]
    across = alt.X("token:N", sort=alt.SortField("at"), title=None)
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=drawn), title=_title(one))
        .mark_bar(color="#1f77b4")
        .encode(x=across, y="activation:Q")
        .properties(height=_TALL)
    )
    return chart


def _title(one: Excerpt) -> alt.TitleParams:
    return alt.TitleParams(one.clip, anchor="start", fontSize=11)


def _below(most: float) -> float:
    """The greatest number of one digit that is not above.

    >>> _below(34.2), _below(8.7)
    (30.0, 8.0)
    """
    if most <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(most))
    return math.floor(most / unit) * unit
