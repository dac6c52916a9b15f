"""When what is heard in a recording: words, phones, or sounds, each with its time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooked_asr.manifests import Clip
from hooked_asr.sae.errors import SAEError

_NAMES = ("label", "text", "word", "phone")


@dataclass(frozen=True)
class Aligned:
    """A label (a word, a phone, a sound) from `start` to `end` (s)."""

    label: str
    start: float
    end: float


Alignments = Mapping[str, Sequence[Aligned]]  # by the clip's id
AlignmentsAsked = str | os.PathLike[str] | Mapping[str, Iterable[Any]]


def read_alignments(asked: AlignmentsAsked, clips: Sequence[Clip]) -> dict[str, list[Aligned]]:
    """What is heard when in each clip, of those of which it is known.

    - `asked`: the name of a manifest's column; the path of a JSON file (.json) with an object of
      clips; or a mapping of them. Clips go by their id, or their file's name without its suffix.

    A clip's entries are `[label, start, end]`, objects with `label` (or `text`, `word`, `phone`),
    `start` and `end`, or anything with such attributes; in seconds. In a CSV the list is JSON.

    Raises `SAEError` for a column or file that is not there, what is no alignment, or none at all.
    """
    given = asked if isinstance(asked, Mapping) else _looked_up(asked, clips)
    found = {}
    for clip in clips:
        own = given.get(clip.id, given.get(Path(clip.audio).stem))
        if own is not None:
            found[clip.id] = _aligned(own, clip.id)
    if not found:
        raise SAEError(
            f"none of {len(clips)} clips is aligned in {_called(asked)}: it names "
            f"{', '.join(list(given)[:3]) or 'no clip'}, and the first clip is {clips[0].id!r}"
        )
    return found


def from_ends(
    labels: Sequence[str], ends: Sequence[float | int], sample_rate: float = 16_000.0
) -> list[Aligned]:
    """An alignment without gaps, told by where each label ends (in samples, from 0 on).

    >>> from_ends(["sil", "ah"], [1600, 4800])
    [Aligned(label='sil', start=0.0, end=0.1), Aligned(label='ah', start=0.1, end=0.3)]

    Raises `SAEError` where there are not as many ends as labels.
    """
    if len(labels) != len(ends):
        raise SAEError(f"each label has an end; got {len(labels)} labels and {len(ends)} ends")
    starts = [0.0, *ends[:-1]]
    return [
        Aligned(label, start / sample_rate, end / sample_rate)
        for label, start, end in zip(labels, starts, ends, strict=True)
    ]


def _called(asked: AlignmentsAsked) -> str:
    return "the mapping" if isinstance(asked, Mapping) else repr(os.fspath(asked))


def _looked_up(asked: str | os.PathLike[str], clips: Sequence[Clip]) -> dict[str, Any]:
    name, path = os.fspath(asked), Path(asked)
    column = {clip.id: clip.labels[name] for clip in clips if clip.labels.get(name) is not None}
    if column:
        return column
    if path.suffix != ".json" or not path.is_file():
        columns = sorted({one for clip in clips for one in clip.labels})
        raise SAEError(
            f"alignments are a column of the manifest ({', '.join(columns) or 'it has none'}) or a "
            f"JSON file; got {name!r}"
        )
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise SAEError(f"{path} is no JSON: {cause}") from cause
    if not isinstance(read, dict):
        raise SAEError(f"{path} holds one object, with a list for each clip")
    return read


def _aligned(entries: Any, clip: str) -> list[Aligned]:
    try:
        listed = json.loads(entries) if isinstance(entries, str) else list(entries)
        found = [_entry(one) for one in listed]
    except (ValueError, TypeError, AttributeError, KeyError) as cause:
        raise SAEError(
            f"the alignment of clip {clip!r} is a list of [label, start, end] (s): {cause!r}"
        ) from cause
    for one in found:
        if not 0 <= one.start <= one.end < float("inf"):
            raise SAEError(
                f"clip {clip!r}: {one.label!r} lasts from {one.start:g} to {one.end:g} s"
            )
    return sorted(found, key=lambda one: one.start)


def _entry(one: Any) -> Aligned:
    if isinstance(one, Mapping):
        label = next(one[name] for name in _NAMES if name in one) if {*_NAMES} & {*one} else None
        return _checked(label, one["start"], one["end"])
    if isinstance(one, list | tuple):
        label, start, end = one
        return _checked(label, start, end)
    label = next((getattr(one, name) for name in _NAMES if hasattr(one, name)), None)
    return _checked(label, one.start, one.end)


def _checked(label: Any, start: Any, end: Any) -> Aligned:
    if not isinstance(label, str):
        raise ValueError(f"a label is a text; got {label!r}")
    return Aligned(label.strip(), float(start), float(end))
