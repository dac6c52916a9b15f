"""What is known of every row of activations: its class, word or phone; and the same at random."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.alignments import Alignments
from hooked_asr.timing import FRAMES, FRAMES_PER_SECOND

UNKNOWN, NONE = -2, -1  # a clip of which nothing is known; a row of a known one without a label

Codes = Int[np.ndarray, " row"]


@dataclass(frozen=True)
class ReadClip:
    """A clip that was read: rows `start` to `start + rows` are its own.

    - `audio`: its path; `seconds`: how long it is.
    - `tokens`: the text of each row's token, of a site in the decoder.
    """

    id: str
    audio: str
    seconds: float
    start: int
    rows: int
    group: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    tokens: list[str] | None = None

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.rows)


@dataclass(frozen=True, eq=False)
class RowLabels:
    """A kind of label ("phone", "sex") and which of its `names` each row has.

    `codes`: numbers of names; `NONE` for none of them, and `UNKNOWN` for rows that do not count.
    `of_clips`: whether all rows of a clip have the same.
    """

    kind: str
    names: list[str]
    codes: Codes
    of_clips: bool


def aligned_labels(
    kind: str,
    alignments: Alignments,
    clips: Sequence[ReadClip],
    clock: str,
    lag: float = 0.0,
    most: int = 256,
) -> RowLabels:
    """The label that is heard at the centre of each row, `lag` seconds before it.

    A row of the encoder hears 20 ms; its centre is 10 ms behind its beginning (`timing.seconds`).
    Of overlapping labels the later one counts. The `most` frequent labels have names.
    """
    times = Counter[str]()
    spans: list[tuple[int, int, str]] = []
    codes = np.full(_n_rows(clips), UNKNOWN, np.int32)
    width = FRAMES[clock] / FRAMES_PER_SECOND
    for clip in clips:
        if clip.id not in alignments:
            continue
        codes[clip.span] = NONE
        for one in alignments[clip.id]:
            first, stop = (_first_behind(at + lag, width, clip.rows) for at in (one.start, one.end))
            times[one.label] += stop - first
            spans.append((clip.start + first, clip.start + stop, one.label))
    names, numbers = _numbered(times, most)
    for first, stop, label in spans:
        codes[first:stop] = numbers.get(label, NONE)
    return RowLabels(kind, names, codes, False)


def token_labels(clips: Sequence[ReadClip], most: int = 256) -> RowLabels:
    """The token that is read in at each row."""
    said = [token for clip in clips for token in clip.tokens or []]
    names, numbers = _numbered(Counter(said), most)
    codes = np.array([numbers.get(token, NONE) for token in said], np.int32)
    return RowLabels("token", names, codes, False)


def clip_labels(kind: str, clips: Sequence[ReadClip], most: int = 256) -> RowLabels:
    """A column of the manifest: all rows of a clip have its label.

    Raises `SAEError` for a column that no clip has.
    """
    values = {clip.id: clip.labels[kind] for clip in clips if clip.labels.get(kind) is not None}
    if not values:
        known = sorted({name for clip in clips for name in clip.labels})
        raise SAEError(
            f"no clip has a label {kind!r}: the manifest has {', '.join(known) or 'none'}"
        )
    times = Counter[str]()
    for clip in clips:
        if clip.id in values:
            times[str(values[clip.id])] += clip.rows
    names, numbers = _numbered(times, most)
    codes = np.full(_n_rows(clips), UNKNOWN, np.int32)
    for clip in clips:
        if clip.id in values:
            codes[clip.span] = numbers.get(str(values[clip.id]), NONE)
    return RowLabels(kind, names, codes, True)


def halves(clips: Sequence[ReadClip], rng: np.random.Generator) -> Bool[np.ndarray, " row"]:
    """Which rows thresholds are chosen on; groups (or clips, where none are given) stay together.

    Raises `SAEError` where there is one group only.
    """
    rows = Counter[str]()
    for clip in clips:
        rows[_unit(clip)] += clip.rows
    if len(rows) < 2:
        raise SAEError(
            f"thresholds are chosen on some clips and measured on others: all {len(clips)} are of "
            "one group; give more"
        )
    names = sorted(rows)
    filled, chosen = [0, 0], set()
    for i in rng.permutation(len(names)):
        half = int(filled[1] < filled[0])
        filled[half] += rows[names[i]]
        if half == 0:
            chosen.add(names[i])
    fitted = np.zeros(_n_rows(clips), bool)
    for clip in clips:
        fitted[clip.span] = _unit(clip) in chosen
    return fitted


def shuffled(labels: RowLabels, clips: Sequence[ReadClip], rng: np.random.Generator) -> Codes:
    """Labels that have nothing to do with their rows, as frequent, and lasting as long.

    Clips exchange their labels; groups, where all clips of each have the same. Those with times
    are given to another clip from a random place on, around and around.
    """
    known = [clip for clip in clips if clip.rows and labels.codes[clip.start] != UNKNOWN]
    codes = labels.codes.copy()
    if labels.of_clips:
        for clip, code in zip(known, _exchanged(labels.codes, known, rng), strict=True):
            codes[clip.span] = code
        return codes
    for clip, donor in zip(known, rng.permutation(len(known)), strict=True):
        own = labels.codes[known[donor].span]
        codes[clip.span] = np.resize(np.roll(own, rng.integers(len(own))), clip.rows)
    return codes


# --- Parts ----------------------------------------------------------------------------------------


def _n_rows(clips: Sequence[ReadClip]) -> int:
    return sum(clip.rows for clip in clips)


def _unit(clip: ReadClip) -> str:
    return f"clip {clip.id}" if clip.group is None else f"group {clip.group}"


def _first_behind(seconds: float, width: float, n_rows: int) -> int:
    """The first row whose centre is not before a moment."""
    # A moment that is a centre as written may be a float a little behind it.
    return min(max(math.ceil(round(seconds / width - 0.5, 6)), 0), n_rows)


def _numbered(times: Counter[str], most: int) -> tuple[list[str], dict[str, int]]:
    """The names that last longest, sorted by how long, and their numbers."""
    there = [(name, n) for name, n in times.items() if n > 0]
    names = [name for name, _ in sorted(there, key=lambda one: (-one[1], one[0]))[:most]]
    return names, {name: i for i, name in enumerate(names)}


def _exchanged(codes: Codes, known: Sequence[ReadClip], rng: np.random.Generator) -> list[int]:
    """A code for each clip."""
    own = [int(codes[clip.start]) for clip in known]
    units = [_unit(clip) for clip in known]
    of_unit: dict[str, set[int]] = {}
    for unit, code in zip(units, own, strict=True):
        of_unit.setdefault(unit, set()).add(code)
    if any(len(there) > 1 for there in of_unit.values()):
        return [int(code) for code in rng.permutation(own)]
    drawn = rng.permutation([next(iter(there)) for there in of_unit.values()])
    given = dict(zip(of_unit, drawn.tolist(), strict=True))
    return [given[unit] for unit in units]
