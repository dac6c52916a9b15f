"""Figures to files."""

from __future__ import annotations

import os
from typing import Any

from hooked_asr.files import written_aside


def save(chart: Any, path: str | os.PathLike[str]) -> None:
    """Write an Altair chart as .html (one file that needs no network), .png, .svg or .pdf."""
    options: dict[str, dict[str, Any]] = {".html": {"inline": True}, ".png": {"scale_factor": 2.0}}
    with written_aside(path) as aside:
        chart.save(str(aside), **options.get(aside.suffix, {}))
