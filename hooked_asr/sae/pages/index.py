"""The page of all features, to be searched and sorted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from hooked_asr.sae.pages.parts import number, page, score, table
from hooked_asr.sae.reading.feature import FeatureNote
from hooked_asr.sae.reading.reading import FeatureReading

_UNDER = 6  # labels at its peaks that a row tells
_GOOD = 0.6  # F1


def index_page(reading: FeatureReading, notes: Sequence[FeatureNote], files: Sequence[str]) -> str:
    """A row for each feature, `files` its page."""
    controlled = reading.control is not None
    hours = sum(clip.seconds for clip in reading.clips) / 3600
    body = [
        f"<h1>Features of {escape(reading.site)}</h1>",
        f"<p>{escape(reading.model)}; {len(reading.active)} of {len(reading.numbers)} features "
        f"active on {len(reading.clips)} clips ({hours:.2f} h)</p>",
        _counts(reading),
        '<p class="search"><label>Search <input type="search" placeholder="a label, word, phone '
        'or number" autofocus></label> <output></output></p>',
        _rows(notes, files, controlled),
    ]
    return page(f"Features of {reading.site}", "\n".join(body), "index.js")


def _counts(reading: FeatureReading) -> str:
    if not reading.kinds:
        return ""
    controlled = reading.control is not None
    head = ["labels", f"features with F1 ≥ {_GOOD}", "with shuffled labels"]
    head += ["with random weights"] if controlled else []
    rows = []
    for kind in reading.kinds:
        found = reading.count(kind, _GOOD)
        keys = ["features", "shuffled", *(["random"] if controlled else [])]
        rows.append([escape(kind), *(number(found.get(key, math.nan)) for key in keys)])
    return table(head, rows)


def _rows(notes: Sequence[FeatureNote], files: Sequence[str], controlled: bool) -> str:
    under = list(dict.fromkeys(kind for one in notes for e in one.excerpts for kind in e.under))
    names = ["feature", "density %", "mean", "kind", "label", "F1", "bits", "shuffled"]
    names += ["random"] if controlled else []
    names += [f"{kind} at its peaks" for kind in under]
    texts = ("feature", "kind", "label")
    head = "".join(
        f'<th aria-sort="none"{_left(name in texts or "at its" in name)}>'
        f"<button>{escape(name)}</button></th>"
        for name in names
    )
    rows = "".join(
        _row(note, file, under, controlled) for note, file in zip(notes, files, strict=True)
    )
    return (
        f'<div class="wide"><table class="all"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _left(text: bool) -> str:
    return ' class="text"' if text else ""


def _row(note: FeatureNote, file: str, under: Sequence[str], controlled: bool) -> str:
    best = note.best
    scores = [math.nan] * 4 if best is None else [best.f1, best.bits, best.shuffled, best.random]
    cells = [
        f'<td class="text" data-v="{note.number}"><a href="{escape(file)}">{note.number}</a></td>',
        _number_cell(100 * note.density, number(100 * note.density)),
        _number_cell(note.mean, number(note.mean)),
        _text_cell("" if best is None else best.kind),
        _text_cell("" if best is None else best.label),
        *(_number_cell(one, score(one)) for one in (scores if controlled else scores[:3])),
        *(_text_cell(" · ".join(note.under(kind)[:_UNDER])) for kind in under),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _number_cell(value: float, shown: str) -> str:
    key = "" if math.isnan(value) else f"{value:.6g}"
    return f'<td data-v="{key}">{shown}</td>'


def _text_cell(text: str) -> str:
    return f'<td class="text">{escape(text)}</td>'
