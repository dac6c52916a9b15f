"""A sweep over features on one page that needs nothing else."""

from __future__ import annotations

import os
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hooked_asr.files import written_aside
from hooked_asr.patching.saving import ResultError

if TYPE_CHECKING:
    from hooked_asr.sae.steering.result import SteerSweep

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: left }
svg { max-width: 100%; height: auto }
.wide { overflow-x: auto }
"""
_EXAMPLES = 8  # transcripts of each edit
_SHARES = ("changed", "with_text", "language_changed", "identified", "probability")


def write_report(
    sweep: SteerSweep, path: str | os.PathLike[str], language: str | None = None
) -> None:
    """A page with what each edit does, the curves, and transcripts that change.

    Raises `ResultError` for another suffix than .html.
    """
    if Path(path).suffix != ".html":
        raise ResultError(f"a report is a page, .html; got {os.fspath(path)!r}")
    title = f"Steering by features: {escape(sweep.how)} at {escape(sweep.site)}"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{escape(Path(sweep.effect.model).name)}, {len(sweep.effect.clips)} clips.</p>",
        _numbers(sweep.to_pandas(language)),
        _svg(sweep.plot(language)),
        "<h2>Transcripts that change</h2>",
        _transcripts(sweep),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")


def _numbers(table: pd.DataFrame) -> str:
    shares = [name for name in _SHARES if name in table and table[name].notna().any()]
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row["name"]), "" if pd.isna(row["strength"]) else f"{row['strength']:g}"]
        cells += [_with_interval(row, name) for name in shares]
        rows.append([*cells, _rate(row["wer"]), _rate(row["wer_before"])])
    return _table(["feature", "strength", *shares, "wer", "wer before"], rows)


def _transcripts(sweep: SteerSweep) -> str:
    table = sweep.by_clip()
    changed = table[table["changed"]]
    if changed.empty:
        return "<p>None.</p>"
    first = changed.groupby(["name", "strength"], sort=False, dropna=False).head(_EXAMPLES)
    columns = ["name", "strength", "clip", "language_before", "before", "language", "text"]
    rows = [
        ["" if not isinstance(cell, str) and pd.isna(cell) else str(cell) for cell in row]
        for row in first[columns].itertuples(index=False)
    ]
    return _table(["feature", "strength", "clip", "told", "heard", "told", "heard, edited"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    above = "".join(f"<th>{escape(name)}</th>" for name in head)
    below = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{above}</tr>{below}</table></div>'


def _with_interval(row: dict[Any, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    told = f"{row[name]:.3f}"
    return told if low is None or pd.isna(low) else f"{told} ({low:.3f} – {high:.3f})"


def _rate(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _svg(chart: Any) -> str:
    drawn = StringIO()
    chart.save(drawn, format="svg")
    return drawn.getvalue()
