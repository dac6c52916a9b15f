"""The index of a store: which rows are whose, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooked_asr.features.errors import FeatureError
from hooked_asr.features.plan import Shard
from hooked_asr.features.shard_file import ClipRows, ShardFile
from hooked_asr.features.sites import Sites
from hooked_asr.manifests import Clip


def index_of(
    folder: Path, shards: Sequence[Shard], sites: Sites, begun: Mapping[str, Any]
) -> dict[str, Any]:
    """What the index says, read from all shards.

    Raises `FeatureError` for a shard that is missing, damaged, or of other clips.
    """
    clips: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    files, described, start = [], _described(sites), 0
    for shard in shards:
        file = ShardFile.open(folder / shard.file)
        _check_clips(file, shard)
        for clip, known in zip(shard.clips, file.clips, strict=True):
            if known.failure is not None:
                failed[clip.id] = known.failure
                continue
            clips.append(_entry(clip, known, start))
            start += known.rows
        if file.n_rows:
            _note_types(described, file)
        files.append({"file": shard.file, "rows": file.n_rows})
    return {**begun, "rows": start, "sites": described, "shards": files, "failed": failed} | {
        "clips": clips
    }


def _described(sites: Sites) -> dict[str, dict[str, Any]]:
    return {
        spec.name: {"axes": " ".join(spec.axes), "clock": spec.clock, "width": 0, "dtype": "F32"}
        for spec in sites.specs
    }


def _note_types(described: dict[str, dict[str, Any]], file: ShardFile) -> None:
    for name, own in described.items():
        kind, shape, _ = file.sites[name]
        if own["width"] not in (0, shape[1]):
            raise FeatureError(
                f"pool gives vectors of several widths for {name!r}: {own['width']}, and in "
                f"{file.path} {shape[1]}"
            )
        own |= {"width": shape[1], "dtype": kind}


def _check_clips(file: ShardFile, shard: Shard) -> None:
    theirs, ours = [clip.id for clip in file.clips], [clip.id for clip in shard.clips]
    if theirs != ours:
        raise FeatureError(
            f"{file.path} holds other clips than were asked for: remove it, and run the same "
            "harvest again"
        )


def _entry(clip: Clip, known: ClipRows, start: int) -> dict[str, Any]:
    return {
        "id": clip.id,
        "audio": clip.audio,
        "text": clip.text if known.text is None else known.text,
        "language": clip.language if known.language is None else known.language,
        "group": clip.group,
        "labels": dict(clip.labels),
        "seconds": known.seconds,
        "start": start,
        "rows": known.rows,
    }
