"""A result as a file: its numbers, its table or its figure, by the file's suffix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.viz.figure import save as save_figure

_FIGURES = (".html", ".png", ".svg", ".pdf")
_ALL = (".json", ".csv", *_FIGURES)


class ResultError(HookedASRError):
    """A result that cannot be kept or shown as asked."""


def save_as(
    path: str | os.PathLike[str],
    everything: Callable[[], Any],
    table: Callable[[], pd.DataFrame],
    chart: Callable[[], Any],
) -> None:
    """Write everything (.json), the table (.csv) or the chart (.html, .png, .svg, .pdf).

    Raises `ResultError` for another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in _ALL:
        raise ResultError(f"a result is saved as {', '.join(_ALL)}; got {os.fspath(path)!r}")
    if suffix in _FIGURES:
        save_figure(chart(), path)
        return
    with written_aside(path) as aside:
        if suffix == ".csv":
            table().to_csv(aside, index=False)
        else:
            text = json.dumps(plain(everything()), indent=1, ensure_ascii=False, allow_nan=False)
            aside.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity: None stands for them."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
