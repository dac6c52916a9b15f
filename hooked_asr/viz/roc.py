"""ROC curves: what is found over what is falsely flagged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

_SIDE = 320  # pixels

Points = Sequence[tuple[float, float]]  # false alarms and hits, as shares, fewest first


def roc_curves(
    lines: Mapping[str, Points], *, mark: float | None = None, title: str = "", subtitle: str = ""
) -> alt.LayerChart:
    """A step line for each score, beside the diagonal of chance; all but the first are dashed.

    `mark`: a share of false alarms at which an upright line is drawn.

    >>> chart = roc_curves({"probe": [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]}, mark=0.05)
    >>> len(chart.to_dict()["layer"])
    3
    """
    rows = [
        {"false alarms": x, "hits": y, "score": name, "place": i}
        for name, points in lines.items()
        for i, (x, y) in enumerate(points)
    ]
    names = list(lines)
    legend = alt.Legend(
        orient="bottom", direction="vertical", labelLimit=0, symbolType="stroke", symbolOpacity=1
    )
    share = alt.Scale(domain=[0, 1])
    across = alt.X("false alarms:Q", title="right transcripts flagged", scale=share)
    up = alt.Y("hits:Q", title="wrong transcripts flagged", scale=share)
    dashes = alt.Scale(domain=names, range=[[1, 0], *[[5, 4]] * (len(names) - 1)])
    curve = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step-after")
        .encode(
            x=across,
            y=up,
            order="place:Q",
            color=alt.Color("score:N", title=None, scale=alt.Scale(domain=names), legend=legend),
            strokeDash=alt.StrokeDash("score:N", title=None, scale=dashes, legend=legend),
            tooltip=["score:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in _AXES)],
        )
    )
    ends = alt.Data(values=[dict.fromkeys(_AXES, end) for end in (0, 1)])
    chance = alt.Chart(ends).mark_line(color="lightgrey").encode(x=across, y=up)
    layers = [chance, curve]
    if mark is not None:
        upright = alt.Chart(alt.Data(values=[{"false alarms": mark}]))
        layers.insert(1, upright.mark_rule(color="grey", strokeDash=[2, 3]).encode(x=across))
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start")
    return alt.layer(*layers).properties(width=_SIDE, height=_SIDE, title=heading)


_AXES = ("false alarms", "hits")
