"""What `hooked-asr patch` was asked for, and how it shows what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from hooked_asr.cli.tables import new_table
from hooked_asr.patching import Sites


@dataclass(frozen=True)
class Wanted:
    """The options of a sweep; `sites` as they were written, `asks` what the model is asked by."""

    sites: dict[str, Sites]
    reference: str
    metric: str
    operation: str
    alpha: float
    top: int
    out: Path
    seed: int
    memory: str | None
    asks: dict[str, str]


def strongest(rows: pd.DataFrame, top: int) -> Table:
    """The sites of one recording that move the metric most."""
    order = rows["change"].abs().sort_values(ascending=False, kind="stable").index
    numbers = [name for name in ("value", "change", "normalized") if name in rows]
    table = new_table("site", *(["token"] if "token" in rows else []), *numbers)
    for _, row in rows.loc[order].head(top).iterrows():
        words = [row["site"]]
        if "token" in rows:  # a site that is all positions at once has none
            words.append(repr(row["token"]) if isinstance(row["token"], str) else "")
        table.add_row(*map(escape, words), *(f"{row[name]:+.4f}" for name in numbers))
    return table


def strongest_means(rows: pd.DataFrame) -> Table:
    """Means over many recordings, as they come, each with its interval."""
    numbers = [name for name in ("change", "normalized") if name in rows]
    columns = [column for name in numbers for column in (name, "95% interval")]
    table = new_table("site", *columns, "n")
    for _, row in rows.iterrows():
        shown = [
            text
            for name in numbers
            for text in (
                f"{row[name]:+.4f}",
                f"{row[name + '_low']:+.4f} to {row[name + '_high']:+.4f}",
            )
        ]
        table.add_row(escape(row["site"]), *shown, str(row["n"]))
    return table
