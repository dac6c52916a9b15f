"""Heatmaps over two named axes, or over three as a row of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import altair as alt
from jaxtyping import Float
from torch import Tensor

_CELL = 28  # pixels, so that a label fits beside each row and column
_LONGEST = 900  # pixels; longer axes get thinner cells
_LABEL = 14  # pixels that a label takes


def heatmap(
    values: Float[Tensor, "..."],
    axes: Mapping[str, Sequence[str | int]],
    *,
    label: str,
    title: str = "",
    subtitle: str = "",
    centred: bool = True,
    bounds: tuple[float, float] | None = None,
) -> alt.Chart | alt.FacetChart:
    """Values as colours: the first axis down, the last across, a middle one as separate panels.

    `centred` colours by distance from zero (red above, blue below, white at zero); otherwise from
    the least to the greatest value, or between `bounds`, which make several figures comparable.
    Cells tell their value under the mouse; those without a finite one stay empty.
    """
    if len(axes) not in (2, 3) or values.shape != tuple(map(len, axes.values())):
        sizes = {name: len(labels) for name, labels in axes.items()}
        raise ValueError(f"a heatmap has 2 or 3 axes; got {sizes} for shape {list(values.shape)}")
    axes = {name: _of_one_kind(labels) for name, labels in axes.items()}
    names = list(axes)
    down, across = names[0], names[-1]
    numbers = [number if math.isfinite(number) else None for number in values.flatten().tolist()]
    cells = [
        dict(zip([*names, label], [*labels, number], strict=True))
        for labels, number in zip(product(*axes.values()), numbers, strict=True)
    ]
    chart = (
        alt.Chart(alt.Data(values=cells))  # a data frame of over 5000 rows would be refused
        .mark_rect()
        .encode(
            x=alt.X(
                f"{across}:O", title=across, scale=_order(axes[across]), axis=_axis(axes[across])
            ),
            y=alt.Y(f"{down}:O", title=down, scale=_order(axes[down]), axis=_axis(axes[down])),
            color=alt.Color(f"{label}:Q", scale=_colours(numbers, centred, bounds), title=label),
            tooltip=[*(f"{name}:N" for name in names), alt.Tooltip(f"{label}:Q", format=".4f")],
        )
        .properties(width=_length(axes[across]), height=_length(axes[down]))
    )
    if len(names) == 3:
        order: list[Any] = list(axes[names[1]])
        panels = alt.Facet(f"{names[1]}:O", sort=order)
        chart = chart.facet(panels, columns=_columns(axes[across]))
    return chart.properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start"))


def _colours(
    numbers: list[float | None], centred: bool, bounds: tuple[float, float] | None
) -> alt.Scale:
    if not centred:
        return alt.Scale(scheme="viridis", domain=list(bounds) if bounds else alt.Undefined)
    # All zeros still need a range; any will show them as white.
    reach = max((abs(number) for number in numbers if number is not None), default=0.0) or 1.0
    return alt.Scale(scheme="redblue", domain=[-reach, reach], reverse=True)


def _of_one_kind(labels: Sequence[str | int]) -> Sequence[str | int]:
    """Numbers among texts (a position beside a span of them) as texts too, or none would sort."""
    return labels if len({type(label) for label in labels}) == 1 else list(map(str, labels))


def _order(labels: Sequence[Any]) -> alt.Scale:
    """All labels as they come: left to itself, the chart would put those of empty cells last."""
    return alt.Scale(domain=list(labels))


def _axis(labels: Sequence[Any]) -> alt.Axis:
    step = math.ceil(_LABEL * len(labels) / _length(labels))
    upright = step == 1 and all(isinstance(label, int) for label in labels)
    return alt.Axis(values=list(labels[::step]), labelAngle=0 if upright else alt.Undefined)


def _length(labels: Sequence[str | int]) -> int:
    return min(_CELL * len(labels), _LONGEST)


def _columns(labels: Sequence[str | int]) -> int:
    return max(1, _LONGEST // _length(labels))
