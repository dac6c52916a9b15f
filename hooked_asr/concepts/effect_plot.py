"""The figure of a concept's effect on transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

from hooked_asr.viz.bars import bars
from hooked_asr.viz.curves import curves, in_rows

_SHARE = (0.0, 1.0)


def effect_figure(
    table: pd.DataFrame,
    title: str,
    subtitle: str,
    language: str | None,
    across: str = "strength (class distances)",
    colour: str = "direction",
) -> alt.ConcatChart:
    """Up to five panels, those that have numbers, of `ConceptEffect.to_pandas`.

    `across`, `colour`: what strengths and names are called. How many clips have text is shown where
    that is not all of them.
    """
    labels = {"changed": "share of texts changed"}
    if (table[["with_text", "with_text_before"]] < 1).any(axis=None):
        labels["with_text"] = "share of clips with text"
    if language is None:
        labels["language_changed"] = "share of languages changed"
    else:
        labels["identified"] = f"share identified as {language}"
    labels |= {"wer": "word error rate", "kl": "KL (nats)"}
    known = {name: label for name, label in labels.items() if table[name].notna().any()}
    swept = table["strength"].notna().all()
    charts: list[Any] = [
        _over_strength(table, name, label, across, colour)
        if swept
        else _of_each(table, name, label)
        for name, label in known.items()
    ]
    return in_rows(charts, columns=2, title=title, subtitle=subtitle)


def _over_strength(
    table: pd.DataFrame, column: str, label: str, across: str, colour: str
) -> alt.LayerChart:
    rows: list[dict[str, str | int | float]] = [
        {
            across: float(row["strength"]),
            label: float(row[column]),
            colour: str(row["name"]),
            "low": _end(row, f"{column}_low"),
            "high": _end(row, f"{column}_high"),
        }
        for row in _rows(table)
    ]
    bounds = _SHARE if label.startswith("share") else None
    return curves(rows, x=across, y=label, colour=colour, bounds=bounds)


def _of_each(table: pd.DataFrame, column: str, label: str) -> alt.LayerChart:
    drawn = [
        (_label(row), float(row[column]), _end(row, f"{column}_low"), _end(row, f"{column}_high"))
        for row in _rows(table)
    ]
    return bars(drawn, label=label)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _label(row: Mapping[str, Any]) -> str:
    strength = row["strength"]
    return str(row["name"]) if pd.isna(strength) else f"{row['name']} × {strength:g}"


def _end(row: Mapping[str, Any], name: str) -> float:
    """One end of an interval; NaN for a number that has none."""
    return float(row.get(name, float("nan")))
