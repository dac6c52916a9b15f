"""The tokens that a logit lens sees, as a table in colours; whole and plain in a pipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hooked_asr.cli.lens_tables import PIPED
from hooked_asr.lenses import LogitLens, saturation_layers
from hooked_asr.viz.printable import printable

_WIDEST = 16  # columns of a token on a terminal
_GAP = 2  # columns between two
# The ends, and what is between, of the colours that figures have too (viridis).
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True)
class _Column:
    """A position from top to bottom."""

    head: str
    cells: list[tuple[str, float]]
    below: list[str]

    def width(self, widest: int) -> int:
        words = [self.head, *self.below, *(token for token, _ in self.cells)]
        return min(widest, max(map(len, words)))


def show_tokens(lens: LogitLens) -> None:
    """Print one clip's lens: sites down, positions across, as many side by side as there is room.

    Tokens that begin a word have ▁ where their space is.
    """
    console = Console()
    piped = not console.is_terminal
    if piped:
        console = Console(width=PIPED)
    widest = PIPED if piped else _WIDEST
    columns = [_column(lens, i) for i in range(len(lens.positions))]
    rows = _rows(lens)
    room = console.width - max(map(len, rows))
    for block in _blocks(columns, room, widest):
        console.print(_block(rows, block, widest))
        console.print()


def _rows(lens: LogitLens) -> list[str]:
    """What each row is called."""
    several = len(set(lens.streams)) > 1
    last = max(lens.layers)
    names = []
    for layer, stream in zip(lens.layers, lens.streams, strict=True):
        name = f"{layer} {stream}" if several else str(layer)
        names.append(f"{name} (last)" if layer == last else name)
    saturated = [f"saturation {one}" if several else "saturation" for one in _streams(lens)]
    # The last layer's "resid_post" is read as the model's own.
    model = [] if "resid_post" in lens.streams else ["model"]
    return ["layer", *names, *model, *saturated]


def _streams(lens: LogitLens) -> list[str]:
    return list(dict.fromkeys(lens.streams))


def _column(lens: LogitLens, i: int) -> _Column:
    tops = lens.top_tokens[:, 0, i, 0].tolist()
    probs = lens.top_probs[:, 0, i, 0].tolist()
    n_layers = len(set(lens.layers))
    saturated = [int(saturation_layers(lens, at=at)[0, i]) for at in _streams(lens)]
    final = _token(lens, int(lens.final_tokens[0, i]))
    model = [] if "resid_post" in lens.streams else [final]
    return _Column(
        head=_token(lens, int(lens.tokens[0, lens.positions[i]])),
        cells=[(_token(lens, top), prob) for top, prob in zip(tops, probs, strict=True)],
        below=[*model, *("–" if one == n_layers else str(one) for one in saturated)],
    )


def _token(lens: LogitLens, token: int) -> str:
    shown = printable(lens.texts.get(token, str(token)))
    return f"▁{shown[1:]}" if shown.startswith(" ") else shown


def _blocks(columns: Sequence[_Column], room: int, widest: int) -> Iterator[list[_Column]]:
    """As many columns as there is room for, again and again; never none."""
    block: list[_Column] = []
    left = room
    for column in columns:
        width = column.width(widest) + _GAP
        if block and width > left:
            yield block
            block, left = [], room
        block.append(column)
        left -= width
    if block:
        yield block


def _block(rows: Sequence[str], columns: Sequence[_Column], widest: int) -> Table:
    head, *names = rows
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.add_column(head, no_wrap=True, min_width=max(map(len, rows)))
    for column in columns:
        table.add_column(Text(_cut(column.head, widest)), no_wrap=True)
    n_sites = len(columns[0].cells)
    for i, name in enumerate(names[:n_sites]):
        style = "bold" if name.endswith("(last)") else ""
        cells = [_cell(*column.cells[i], widest, style) for column in columns]
        table.add_row(Text(name, style), *cells)
    for i, name in enumerate(names[n_sites:]):
        table.add_row(name, *(Text(_cut(column.below[i], widest)) for column in columns))
    return table


def _cell(token: str, prob: float, widest: int, style: str) -> Text:
    """A token on the colour of its probability."""
    ink = "black" if prob > 0.5 else "white"
    return Text(_cut(token, widest), f"{style} {ink} on {_colour(prob)}".strip())


def _colour(prob: float) -> str:
    """Between its two neighbours among the colours, in proportion.

    >>> _colour(0.0), _colour(1.0)
    ('#440154', '#fde725')
    """
    at = min(max(prob, 0.0), 1.0) * (len(_COLOURS) - 1)
    low = min(math.floor(at), len(_COLOURS) - 2)
    pairs = zip(_COLOURS[low], _COLOURS[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in pairs)


def _cut(text: str, widest: int) -> str:
    return text if len(text) <= widest else f"{text[: widest - 1]}…"
