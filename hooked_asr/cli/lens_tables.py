"""What lenses see, as tables on the terminal; whole and plain where another program reads."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from hooked_asr.lenses import ClipLens

PIPED = 100_000  # columns where another program reads: wider than any transcript

_MEANS = ("final_prob", "final_rank", "entropy", "kl", "per", "cosine")
_TEXTS = ("heard", "text")


def show_whole(table: Table) -> None:
    """Print a table, in lines as long as they come for a pipe; a terminal's width wraps texts, and
    cuts no number.
    """
    console, wide = Console(), Console(width=PIPED)
    if not console.is_terminal:
        wide.print(table)
    elif any(not column.no_wrap for column in table.columns):
        console.print(table)
    else:
        width = Measurement.get(wide, wide.options, table).maximum
        Console(width=max(console.width, width)).print(table)


def layer_transcripts(clip: ClipLens) -> Table:
    """What is heard behind each encoder layer."""
    spoken = any(one.told for one in clip.layers)
    table = _table("layer", "wer", "loop", *(["told"] if spoken else []), "heard")
    for one in clip.layers:
        loop = f"{one.loop.unit!r} × {one.loop.count}" if one.loop else ""
        told = [one.told or ""] if spoken else []
        heard = escape(one.text) if not one.empty else "–"
        table.add_row(one.layer, _number(one.wer), escape(loop), *told, heard)
    return table


def layer_counts(counts: pd.DataFrame) -> Table:
    """What the layers' transcripts have in common; `counts` as `EncoderLens.counts` gives them."""
    return plain_table(counts.drop(columns="avg_logprob"))


def corpus_tables(means: pd.DataFrame) -> list[Table]:
    """A corpus's means by language and layer, as `CorpusLens.to_pandas` gives them; in a table of
    their own, those of the tokens that follow.
    """
    ahead = [name for name in means if name.startswith("ahead_") and not _is_end(name)]
    own = [name for name in _MEANS if name in means]
    tables = [plain_table(means[["language", "layer", "clips", "tokens", *own]])]
    return [*tables, plain_table(means[["language", "layer", *ahead]])] if ahead else tables


def saturation_table(saturation: pd.DataFrame) -> Table:
    """Mean saturation layers, each with its interval; as `CorpusLens.saturation` gives them."""
    table = _table("language", "rule", "saturation layer", "95% interval", "clips", "empty")
    for _, row in saturation.iterrows():
        interval = f"{_number(row['layer_low'])} to {_number(row['layer_high'])}"
        counted = (str(row[name]) for name in ("clips", "empty"))
        table.add_row(row["language"], row["rule"], _number(row["layer"]), interval, *counted)
    return table


def plain_table(rows: pd.DataFrame) -> Table:
    """Any table as it is."""
    table = _table(*rows.columns)
    for row in rows.itertuples(index=False):
        table.add_row(*(escape(_number(one)) for one in row))
    return table


def _table(*columns: str) -> Table:
    """A table whose texts alone may take several lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column in _TEXTS
        table.add_column(column, no_wrap=not is_text, overflow="fold")
    return table


def _is_end(name: str) -> bool:
    """Whether a column is an end of an interval."""
    return name.endswith(("_low", "_high"))


def _number(value: object) -> str:
    """Texts and whole numbers as they are, others in three digits; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
