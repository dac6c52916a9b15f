"""Peaks as excerpts: what is heard there, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hooked_asr.sae.reading.alignments import Aligned
from hooked_asr.sae.reading.excerpts import Excerpt, Peaks
from hooked_asr.sae.reading.row_labels import ReadClip
from hooked_asr.timing import seconds

Heard = Mapping[str, Mapping[str, Sequence[Aligned]]]


def excerpts_of(
    peaks: Peaks, place: int, clips: Sequence[ReadClip], clock: str, heard: Heard
) -> list[Excerpt]:
    """Those of one feature, the highest peak first."""
    made = []
    for clip, row, curve in zip(
        peaks.clip[place], peaks.row[place], peaks.curve[place], strict=True
    ):
        if clip >= 0:
            made.append(_excerpt(clips[clip], int(row), curve, clock, heard))
    return made


def _excerpt(clip: ReadClip, row: int, curve: np.ndarray, clock: str, heard: Heard) -> Excerpt:
    reach = len(curve) // 2
    inside = np.flatnonzero(~np.isnan(curve))
    first = row - reach + int(inside[0])
    values = tuple(curve[inside].tolist())
    base = (clip.id, clip.audio, row, float(curve[reach]), first, values)
    if clock == "pos":
        said = clip.tokens or []
        return Excerpt(
            *base, None, None, {"token": said[row]}, {}, said[first : first + len(values)]
        )
    begin, end = seconds(first, clock)[0], seconds(first + len(values) - 1, clock)[1]
    middle = sum(seconds(row, clock)) / 2
    aligned = {
        kind: [one for one in of[clip.id] if one.start < end and one.end > begin]
        for kind, of in heard.items()
        if clip.id in of
    }
    under = {
        kind: one.label
        for kind, around in aligned.items()
        for one in around
        if one.start <= middle < one.end
    }
    return Excerpt(*base, middle, (begin, end), under, aligned)
