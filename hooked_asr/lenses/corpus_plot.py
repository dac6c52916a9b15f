"""The curves of a corpus's logit lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from hooked_asr.viz.curves import curves, in_rows

Curve = Mapping[str, str]  # column of the table -> what tells its line from others of the panel

_SINGLE = {
    "final_prob": "probability of the final token",
    "per": "phoneme error rate of candidates",
    "cosine": "cosine of candidate embeddings",
}
_RANK = "rank of the tokens to come"
_KINDS = {
    "": "all",
    "_others": "but the final token",
    "_elsewhere": "these, beside a token elsewhere",
}
_UNKNOWN = "not told"
_BARS = (420, 180)  # pixels: width, height


def corpus_figure(
    table: pd.DataFrame, saturation: pd.DataFrame, title: str, subtitle: str
) -> alt.ConcatChart:
    """Four panels, those that have numbers, of `CorpusLens.to_pandas` and `.saturation`."""
    panels = []
    for column, label in _SINGLE.items():
        if column in table and table[column].notna().any():
            marks = _marks(saturation) if column == "final_prob" else []
            bounds = (0.0, 1.0) if column == "final_prob" else None
            rows = _rows(table, {column: ""}, label)
            chart = curves(rows, x="layer", y=label, colour="language", marks=marks, bounds=bounds)
            panels.append(chart)
    following = _following(table)
    if following:
        rows = _rows(table, following, _RANK)
        panels.append(curves(rows, x="layer", y=_RANK, colour="language", dash="token", log=True))
    return in_rows(panels, columns=2, title=title, subtitle=subtitle)


def candidates_figure(table: pd.DataFrame, title: str, subtitle: str) -> alt.ConcatChart:
    """How alike candidates are to the final token, and to another; of `CorpusLens.to_pandas`."""
    panels = []
    for column in ("per", "cosine"):
        label = _SINGLE[column]
        rows = [
            {**row, "candidates": kind}
            for ending, kind in _KINDS.items()
            for row in _rows(table, {column + ending: ""}, label)
        ]
        panels.append(curves(rows, x="layer", y=label, colour="candidates"))
    return in_rows(panels, columns=2, title=title, subtitle=subtitle)


def saturation_figure(counts: pd.DataFrame, title: str, subtitle: str) -> alt.Chart:
    """Bars over layers, of `CorpusLens.saturation_counts` of one rule."""
    rows = [
        {
            "layer": str(layer),
            "share": float(share),
            "language": language or _UNKNOWN,
            "tokens": int(tokens),
        }
        for language, layer, share, tokens in zip(
            *(counts[name] for name in ("language", "layer", "share", "tokens")), strict=True
        )
        if pd.notna(share)
    ]
    places = [str(layer) for layer in sorted(counts["layer"].unique())]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="saturation layer", sort=places, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share of tokens", axis=alt.Axis(format="%")),
            xOffset="language:N",
            color=alt.Color("language:N", title="language"),
            tooltip=["language:N", "layer:O", alt.Tooltip("share:Q", format=".3f"), "tokens:Q"],
        )
        .properties(
            width=_BARS[0],
            height=_BARS[1],
            title=alt.TitleParams(title, subtitle=subtitle, anchor="start"),
        )
    )


def _following(table: pd.DataFrame) -> dict[str, str]:
    """The columns of the tokens to come; at step s, that of s is the one to be said there."""
    ranks = [name for name in table if name.startswith("ahead_") and name.endswith("_rank")]
    known = [name for name in ranks if table[name].notna().any()]
    return {name: _called(int(name.split("_")[1])) for name in known}


def _called(ahead: int) -> str:
    return "s" if ahead == 1 else f"s+{ahead - 1}"


def _rows(table: pd.DataFrame, columns: Curve, label: str) -> list[dict[str, Any]]:
    return [
        {
            "layer": int(row["layer"]),
            label: float(row[column]),
            "language": row["language"] or _UNKNOWN,
            "low": float(row[f"{column}_low"]),
            "high": float(row[f"{column}_high"]),
            **({"token": line} if line else {}),
        }
        for column, line in columns.items()
        for _, row in table.iterrows()
    ]


def _marks(saturation: pd.DataFrame) -> Sequence[dict[str, Any]]:
    """The mean saturation layers, where there is one."""
    return [
        {"layer": float(row["layer"]), "language": row["language"] or _UNKNOWN}
        for _, row in saturation.iterrows()
        if pd.notna(row["layer"])
    ]
