"""Tables on the terminal, and whole names where there is none."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_PIPED = 160  # columns when another program reads


def new_table(name: str, *others: str) -> Table:
    """A table whose first column is never cut short."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(name, overflow="fold", no_wrap=False, min_width=32)
    for other in others:
        table.add_column(other)
    return table


def show(table: Table) -> None:
    """Print a table, wide enough for a pipe."""
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED)).print(table)
