"""From the tokens of a window to segments with times, and how far to move on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SECONDS_PER_TIMESTAMP = 0.02
_FRAMES_PER_TIMESTAMP = 2


@dataclass(frozen=True)
class Cut:
    """Part of a window's tokens: what is said from `start` to `end` (s, from its beginning)."""

    start: float
    end: float
    tokens: list[int]


def cut(tokens: Sequence[int], first_timestamp: int, n_frames: int) -> tuple[list[Cut], int]:
    """The segments of a window's tokens, and the frames after which the next window begins.

    Two time stamps side by side end one segment and begin the next. What stands behind the last
    such pair is unfinished: the next window begins there, and says it anew. Without a pair, or with
    a single time stamp at the very end, the window is done. The same as the reference's
    `_retrieve_segment`.

    `first_timestamp` is the token of 0.00 s, `n_frames` the log-mel frames of the window that are
    real.
    """
    row = list(tokens)
    is_time = [token >= first_timestamp for token in row]
    pairs = [i + 1 for i in range(len(row) - 1) if is_time[i] and is_time[i + 1]]
    if not pairs:
        return [_whole(row, is_time, first_timestamp, n_frames)], n_frames
    finished = is_time[-2:] == [False, True]
    # Unfinished, the last segment keeps both stamps of its pair, by which it is known to be so.
    bounds = [0, *pairs, len(row)] if finished else [0, *pairs[:-1], pairs[-1] + 1]
    cuts = []
    for start, stop in pairwise(bounds):
        part = row[start:stop]
        closing = part[-1] if finished or stop != bounds[-1] else part[-2]
        first, last = (_seconds(token, first_timestamp) for token in (part[0], closing))
        cuts.append(Cut(first, last, part))
    if finished:
        return cuts, n_frames
    return cuts, (row[bounds[-1] - 2] - first_timestamp) * _FRAMES_PER_TIMESTAMP


def _whole(row: list[int], is_time: list[bool], first_timestamp: int, n_frames: int) -> Cut:
    last = n_frames // _FRAMES_PER_TIMESTAMP
    stamps = [token for token, timed in zip(row, is_time, strict=True) if timed]
    if stamps and stamps[-1] != first_timestamp:
        last = stamps[-1] - first_timestamp
    return Cut(0.0, last * SECONDS_PER_TIMESTAMP, row)


def _seconds(token: int, first_timestamp: int) -> float:
    return (token - first_timestamp) * SECONDS_PER_TIMESTAMP
