"""Scores over sites: the probe's and those of its baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from hooked_asr.probes.scores import Score

_WIDTH, _HEIGHT = 480, 260  # pixels
_STEP = 30  # at least, for each site

Lines = Mapping[str, Mapping[str, Score]]  # line -> site -> score


def score_curves(
    lines: Lines, score: str, *, title: str = "", subtitle: str = ""
) -> alt.LayerChart:
    """A line over the sites, with bands; all lines but the first are dashed.

    >>> chart = score_curves({"probe": {"a": Score(0.9, 0.8, 1.0)}}, "accuracy")
    >>> len(chart.to_dict()["layer"])
    2
    """
    rows = [
        {"site": site.replace("hook_", ""), "line": line, **_plain(score, found)}
        for line, of in lines.items()
        for site, found in of.items()
    ]
    order: Any = list(dict.fromkeys(row["site"] for row in rows))
    names: Any = list(lines)
    numbers = [alt.Tooltip(f"{name}:Q", format=".4f") for name in (score, "low", "high")]
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolOpacity=1)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("site:O", sort=order, title=None, axis=alt.Axis(labelAngle=-40)),
        color=alt.Color("line:N", title=None, scale=alt.Scale(domain=names), legend=legend),
        tooltip=["site:N", "line:N", *numbers],
    )
    scale = alt.Scale(zero=False)
    dashes = alt.Scale(domain=names, range=[[1, 0], *[[5, 4]] * (len(names) - 1)])
    band = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_area(
        opacity=0.15
    )
    line = base.transform_filter(f"isValid(datum['{score}'])").mark_line(point=True)
    return alt.layer(
        band.encode(y=alt.Y("low:Q", title=score, scale=scale), y2="high:Q"),
        line.encode(
            y=alt.Y(f"{score}:Q", title=score, scale=scale),
            strokeDash=alt.StrokeDash("line:N", title=None, scale=dashes, legend=legend),
        ),
    ).properties(
        width=max(_WIDTH, _STEP * len(order)),
        height=_HEIGHT,
        title=alt.TitleParams(title, subtitle=subtitle, anchor="start"),
    )


def _plain(name: str, score: Score) -> dict[str, float | None]:
    numbers = {name: score.value, "low": score.low, "high": score.high}
    return {key: one if math.isfinite(one) else None for key, one in numbers.items()}
