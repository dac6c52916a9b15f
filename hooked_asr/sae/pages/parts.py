"""What all pages are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path


def page(title: str, body: str, script: str) -> str:
    """A whole page, with its style and script inside. `body` is HTML, `title` text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{_file('page.css')}</style></head>\n"
        f"<body>\n{body}\n<script>\n{_file(script)}</script></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int] = (0,)) -> str:
    """A table of cells that are HTML. `texts`: the columns that are no numbers."""
    kinds = [' class="text"' if i in texts else "" for i in range(len(head))]
    names = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    whole = f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="wide">{whole}</div>'


def number(value: float) -> str:
    """Three digits; a dash for none.

    >>> number(0.12345), number(12345.6), number(float("nan"))
    ('0.123', '12346', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def score(value: float) -> str:
    """Three places; a dash for none.

    >>> score(0.92809), score(6e-9)
    ('0.928', '0.000')
    """
    return "–" if math.isnan(value) else f"{value:.3f}"


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
