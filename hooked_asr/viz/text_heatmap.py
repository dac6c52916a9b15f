"""Heatmaps with a word in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from hooked_asr.viz.printable import printable

_WIDEST, _HEIGHT = 64, 22  # pixels of a cell
_LONGEST = 1200  # pixels; longer axes get thinner cells
_NARROWEST = 24  # pixels that a word takes


def text_heatmap(
    cells: Sequence[dict[str, Any]],
    *,
    across: str,
    down: str,
    colour: str,
    text: str,
    title: str = "",
    subtitle: str = "",
    bounds: tuple[float, float] | None = None,
) -> alt.LayerChart:
    """Cells by their fields: where they stand, the number that colours them, the word inside.

    Rows and columns come in the order in which they are met. Where columns are too many for words,
    these show under the mouse alone, with all other fields. Colours go between `bounds`, or from
    the least to the greatest number. Control characters are written out: a notebook that shows the
    chart as a picture would end at one.
    """
    cells = [_shown(cell) for cell in cells]
    columns = list(dict.fromkeys(cell[across] for cell in cells))
    rows = list(dict.fromkeys(cell[down] for cell in cells))
    width = min(_WIDEST, _LONGEST / max(1, len(columns)))
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X(f"{across}:O", title=across, scale=alt.Scale(domain=columns)),
        y=alt.Y(f"{down}:O", title=down, scale=alt.Scale(domain=rows)),
        tooltip=[_tooltip(name, value) for name, value in cells[0].items()],
    )
    low, high = bounds or _range([cell[colour] for cell in cells])
    scale = alt.Scale(scheme="viridis", domain=[low, high])
    layers = [base.mark_rect().encode(color=alt.Color(f"{colour}:Q", scale=scale, title=colour))]
    if width >= _NARROWEST:
        bright = alt.datum[colour] > (low + high) / 2
        ink: Any = alt.condition(bright, alt.value("black"), alt.value("white"))
        words = base.mark_text(limit=width - 4, fontSize=10).encode(text=f"{text}:N", color=ink)
        layers.append(words)
    return alt.layer(*layers).properties(
        width=width * len(columns),
        height=_HEIGHT * len(rows),
        title=alt.TitleParams(title, subtitle=subtitle, anchor="start"),
    )


def _shown(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in cell.items()
    }


def _tooltip(name: str, value: Any) -> alt.Tooltip:
    if isinstance(value, float):
        return alt.Tooltip(f"{name}:Q", format=".4f")
    return alt.Tooltip(f"{name}:N")


def _range(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    return (low, high) if high > low else (low, low + 1.0)
