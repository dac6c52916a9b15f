"""What is known of each row of a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hooked_asr import timing
from hooked_asr.features.shard_file import ClipRows

_OWN = ("clip", "position", "start", "end", "token", "token_id", "text", "language", "group")


def table_of(
    clips: Sequence[Mapping[str, Any]], clock: str | None, tokens: Iterable[ClipRows]
) -> pd.DataFrame:
    """A line for each row, of the index's entries.

    - `clock`: what each row is one position of; None where it is the whole clip.
    - `tokens`: of the clips that have rows, in order, where the clock is "pos".
    """
    counts = np.array([clip["rows"] for clip in clips], np.int64)
    of = np.repeat(np.arange(len(clips)), counts)
    columns: dict[str, Any] = {"clip": _spread([clip["id"] for clip in clips], of)}
    columns |= _moments(clips, counts, of, clock, tokens)
    for name in ("text", "language", "group"):
        columns[name] = _spread([clip[name] for clip in clips], of)
    for name in dict.fromkeys(name for clip in clips for name in clip["labels"]):
        label = f"{name} (label)" if name in _OWN else name
        columns[label] = _spread([clip["labels"].get(name) for clip in clips], of)
    return pd.DataFrame(columns)


def _spread(values: Sequence[Any], of: Any) -> pd.Series:
    return pd.Series(list(values)).take(of).reset_index(drop=True)


def _moments(
    clips: Sequence[Mapping[str, Any]],
    counts: Any,
    of: Any,
    clock: str | None,
    tokens: Iterable[ClipRows],
) -> dict[str, Any]:
    """Which position a row is, or what it hears, in seconds."""
    if clock is None:
        return {"start": np.zeros(len(of)), "end": np.array([c["seconds"] for c in clips])[of]}
    if clock == "pos":
        known = list(tokens)
        words: list[list[Any]] = [list(one.words) or [None] * one.rows for one in known]
        return {
            "position": [place for one in known for place in one.positions],
            "token": pd.Series([word for own in words for word in own], dtype=object),
            "token_id": [token for one in known for token in one.tokens],
        }
    position = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = timing.FRAMES[clock] / timing.FRAMES_PER_SECOND
    return {"position": position, "start": position * width, "end": (position + 1) * width}
