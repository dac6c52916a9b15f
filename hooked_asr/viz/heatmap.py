"""Heatmaps over two named axes, or over three as a row of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
from jaxtyping import Float
from torch import Tensor

_CELL = 28  # pixels, so that a label fits beside each row and column
_LONGEST = 900  # pixels; longer axes get thinner cells


def heatmap(
    values: Float[Tensor, "..."],
    axes: Mapping[str, Sequence[str | int]],
    *,
    label: str,
    title: str = "",
    subtitle: str = "",
    centred: bool = True,
) -> alt.Chart | alt.FacetChart:
    """Values as colours: the first axis down, the last across, a middle one as separate panels.

    `centred` colours by distance from zero (red above, blue below, white at zero); otherwise from
    the least to the greatest value. Cells tell their value under the mouse.
    """
    names = list(axes)
    down, across = names[0], names[-1]
    index = pd.MultiIndex.from_product(axes.values(), names=names)
    table = index.to_frame(index=False).assign(**{label: values.flatten().double().numpy()})
    chart = (
        alt.Chart(table)
        .mark_rect()
        .encode(
            x=alt.X(f"{across}:O", sort=None, title=across),
            y=alt.Y(f"{down}:O", sort=None, title=down),
            color=alt.Color(f"{label}:Q", scale=_colours(table[label], centred), title=label),
            tooltip=[*names, alt.Tooltip(f"{label}:Q", format=".4f")],
        )
        .properties(width=_length(axes[across]), height=_length(axes[down]))
    )
    if len(names) == 3:
        chart = chart.facet(alt.Facet(f"{names[1]}:O", sort=None), columns=_columns(axes[across]))
    return chart.properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start"))


def _colours(column: Any, centred: bool) -> alt.Scale:
    if not centred:
        return alt.Scale(scheme="viridis")
    # A constant column still needs a range; any will show it as white.
    reach = float(column.abs().max()) or 1.0
    return alt.Scale(scheme="redblue", domain=[-reach, reach], reverse=True)


def _length(labels: Sequence[str | int]) -> int:
    return min(_CELL * len(labels), _LONGEST)


def _columns(labels: Sequence[str | int]) -> int:
    return max(1, _LONGEST // _length(labels))
