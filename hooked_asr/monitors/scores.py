"""From a probe's outputs to scores of tokens, segments, windows and clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.generation import Generated, end_tokens
from hooked_asr.generation.recordings import first_timestamp
from hooked_asr.generation.segments import cut
from hooked_asr.monitors.monitor import Monitor

Vectors = Float[Tensor, "step out"]


@dataclass(frozen=True)
class SpanScore:
    """The score of a segment or a window, from `start` (s) on; None where nothing was read."""

    start: float
    score: float | None
    flagged: bool


@dataclass(frozen=True)
class ClipScores:
    """What a monitor told of one recording (or prompt).

    - `tokens`: for each of the transcript's, the score where it was read in; None for one that
      never was (the last before a limit), and for all where the probe reads the encoder.
    - `segments`: for each of the transcript's; one in all where a model has none. A probe of the
      encoder has for each the score of its window.
    - `windows`: of all, also of those that were left out as silence, and of what was said anew in
      the next; where a prompt holds several clips and the encoder is read, one for each.
    - `final`: the last window's score. `flagged`: whether any segment or window is.
    """

    monitor: str
    tokens: list[float | None]
    segments: list[SpanScore]
    windows: list[SpanScore]
    final: float | None
    flagged: bool


@dataclass(frozen=True, eq=False)
class WindowRow:
    """What was said in one window of a recording, and the outputs there.

    - `outputs`: `[step out]`, the prompt's end first, then where each token was read in; or those
      of real frames, where the encoder is read (`hears`).
    """

    start: float
    tokens: list[int]
    outputs: Vectors
    hears: bool


def clip_scores(
    model: Any, monitor: Monitor, said: Generated, rows: Sequence[WindowRow]
) -> ClipScores:
    """The scores of a recording that was decoded in these windows, in their order."""
    windows = [_span(monitor, row.start, _window_score(model, monitor, row)) for row in rows]
    tokens: list[float | None] = []
    segments: list[SpanScore] = []
    for place, start, first, n in _pieces(model, said, rows):
        row = rows[place]
        tokens += _token_scores(monitor, row, range(first, first + n))
        score = windows[place].score
        if not row.hears:
            score = _text_score(model, monitor, row, range(first, first + n))
        segments.append(_span(monitor, start, score))
    return ClipScores(
        monitor=monitor.name,
        tokens=tokens,
        segments=segments,
        windows=windows,
        final=windows[-1].score,
        flagged=any(one.flagged for one in (*segments, *windows)),
    )


def _span(monitor: Monitor, start: float, score: float | None) -> SpanScore:
    return SpanScore(start, score, monitor.flags(score))


# --- Which tokens are whose -----------------------------------------------------------------------


def _pieces(
    model: Any, said: Generated, rows: Sequence[WindowRow]
) -> Iterator[tuple[int, float, int, int]]:
    """For each segment: its window, when it begins (s), its first token there and how many."""
    segments = getattr(said, "segments", None)
    if segments is None:  # one answer, in one window
        yield len(rows) - 1, 0.0, 0, len(said.tokens)
        return
    zero = first_timestamp(model.generation_config, model.config.d_vocab)
    left = list(segments)
    for place, row in enumerate(rows):
        cuts, _ = cut(row.tokens, zero, 0)
        own = left[: len(cuts)]
        # A window that was left out as silence has none.
        if [one.tokens for one in own] != [one.tokens for one in cuts]:
            continue
        if not math.isclose(own[0].start, row.start + cuts[0].start, abs_tol=1e-6):
            continue
        first = 0
        for one in own:
            yield place, one.start, first, len(one.tokens)
            first += len(one.tokens)
        left = left[len(cuts) :]


def _token_scores(monitor: Monitor, row: WindowRow, places: range) -> list[float | None]:
    if row.hears:
        return [None] * len(places)
    found: list[float] = monitor.score(row.outputs).tolist()
    return [found[i + 1] if i + 1 < len(found) else None for i in places]


# --- Scores ---------------------------------------------------------------------------------------


def _window_score(model: Any, monitor: Monitor, row: WindowRow) -> float | None:
    if row.hears:
        return _pooled(monitor, row.outputs)
    found = _text_score(model, monitor, row, range(len(row.tokens)))
    if found is None and _reads_last(monitor):  # nothing is said: as features are kept of it
        return _pooled(monitor, row.outputs[:1])
    return found


def _text_score(model: Any, monitor: Monitor, row: WindowRow, places: range) -> float | None:
    """Of the tokens of text among some, as far as they were read."""
    n_text = min(end_tokens(model.generation_config), default=model.config.d_vocab)
    n_read = len(row.outputs)
    steps = [i + 1 for i in places if row.tokens[i] < n_text and i + 1 < n_read]
    return _pooled(monitor, row.outputs[steps]) if steps else None


def _pooled(monitor: Monitor, outputs: Vectors) -> float:
    pooled = outputs[-1] if _reads_last(monitor) else outputs.mean(0)
    return monitor.score(pooled).item()


def _reads_last(monitor: Monitor) -> bool:
    return monitor.probe.origin.pool == "last"
