"""Figures to files."""

from __future__ import annotations

import os
from typing import Any

import altair as alt

from hooked_asr.files import written_aside
from hooked_asr.viz.printable import printable


def save(chart: Any, path: str | os.PathLike[str]) -> None:
    """Write an Altair chart as .html (one file that needs no network), .png, .svg or .pdf."""
    spec = chart.to_dict()
    shown = _printable(spec)
    if shown != spec:  # seldom, and slow
        chart = alt.Chart.from_dict(shown)
    options: dict[str, dict[str, Any]] = {".html": {"inline": True}, ".png": {"scale_factor": 2.0}}
    with written_aside(path) as aside:
        chart.save(str(aside), **options.get(aside.suffix, {}))


def _printable(spec: Any) -> Any:
    """A figure as JSON, every text of which can be drawn."""
    if isinstance(spec, dict):
        return {_printable(name): _printable(value) for name, value in spec.items()}
    if isinstance(spec, list):
        return [_printable(one) for one in spec]
    return printable(spec) if isinstance(spec, str) else spec
