"""Where a feature is most active: its peaks, of other clips first, and the curves around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hooked_asr.sae.reading.alignments import Aligned
from hooked_asr.sae.reading.row_labels import ReadClip


@dataclass(frozen=True)
class Excerpt:
    """A peak of a feature, and what is around it.

    - `clip`: its id; `audio`: its path.
    - `position`: of the peak, in the clip's rows; `activation`: there.
    - `first`: the position of the first of `curve`, the activations around the peak.
    - `seconds`: of the peak's centre; `span`: from when to when the curve lasts (s). None in the
      decoder, whose positions are tokens.
    - `under`: the label of each kind that is at the peak.
    - `aligned`: what is heard during the span, of each kind; in the decoder `tokens`, one for each
      of the curve.
    """

    clip: str
    audio: str
    position: int
    activation: float
    first: int
    curve: tuple[float, ...]
    seconds: float | None
    span: tuple[float, float] | None
    under: dict[str, str]
    aligned: dict[str, list[Aligned]]
    tokens: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Peaks:
    """The peaks of all features, the highest first.

    - `clip`: its place among the clips, -1 where a feature has no more; `row`: in the clip.
    - `curve`: activations from `reach` rows before the peak to as many behind it, NaN outside the
      clip.
    """

    clip: Int[np.ndarray, "feature top"]
    row: Int[np.ndarray, "feature top"]
    curve: Float[np.ndarray, "feature top width"]


def find_peaks(
    clips: Sequence[ReadClip],
    rows: Int[np.ndarray, " active"],
    values: Float[np.ndarray, " active"],
    top: int,
    reach: int,
) -> Peaks:
    """One feature's.

    The greatest activation of each clip, the highest first; where there are fewer clips than asked
    for, further peaks, none of them within `reach` rows of another.
    """
    starts = np.array([clip.start for clip in clips])
    # The last of those that start there: a clip without rows starts where the next one does.
    own = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(-values, kind="stable")
    places = np.unique(own[order], return_index=True)[1]
    chosen = [int(order[i]) for i in np.sort(places)[:top]]
    chosen += _further(own, rows, order, chosen, top, reach)
    clip, row = np.full((1, top), -1), np.full((1, top), -1)
    curve = np.full((1, top, 2 * reach + 1), np.nan, np.float32)
    for i, place in enumerate(chosen):
        clip[0, i], row[0, i] = own[place], rows[place] - starts[own[place]]
        curve[0, i] = _curve(clips[own[place]], rows, values, int(rows[place]), reach)
    return Peaks(clip, row, curve)


def all_peaks(found: Sequence[Peaks]) -> Peaks:
    """Of one feature after the other."""
    parts = ([one.clip for one in found], [one.row for one in found], [one.curve for one in found])
    return Peaks(*(np.concatenate(part) for part in parts))


def _further(
    own: np.ndarray, rows: np.ndarray, order: np.ndarray, chosen: list[int], top: int, reach: int
) -> list[int]:
    """More peaks of the same clips, apart from each other."""
    found: list[int] = []
    taken = np.zeros(len(rows), bool)
    for place in chosen:
        taken |= (own == own[place]) & (np.abs(rows - rows[place]) <= reach)
    while len(chosen) + len(found) < top:
        left = order[~taken[order]]
        if not len(left):
            break
        best = int(left[0])
        found.append(best)
        taken |= (own == own[best]) & (np.abs(rows - rows[best]) <= reach)
    return found


def _curve(
    clip: ReadClip, rows: np.ndarray, values: np.ndarray, peak: int, reach: int
) -> Float[np.ndarray, " width"]:
    low, high = max(peak - reach, clip.start), min(peak + reach + 1, clip.start + clip.rows)
    curve = np.full(2 * reach + 1, np.nan, np.float32)
    curve[low - peak + reach : high - peak + reach] = 0.0
    first, stop = np.searchsorted(rows, [low, high])
    curve[rows[first:stop] - peak + reach] = values[first:stop]
    return curve
