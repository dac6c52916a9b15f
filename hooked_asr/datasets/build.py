"""From items to a folder: recordings, manifest, times, and a record of how it was made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import soundfile

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.datasets.claims import (
    MANIFEST,
    PARTS,
    Recipe,
    claim,
    read_record,
    whole,
    write_record,
    write_text,
)
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Item, Made
from hooked_asr.datasets.synthesis import Synthesis
from hooked_asr.files import written_aside
from hooked_asr.long_work import work_through
from hooked_asr.nano.corpus import bare
from hooked_asr.nano.espeak import Interval

_PART = 16  # items made together: what a kill costs at most
_COLUMNS = ("audio", "id", "text", "language", "group")
_PACKAGES = ("hooked_asr", "espeakng-loader", "soxr", "numpy")

Row = dict[str, Any]


def recipe_of(builder: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a builder makes: its arguments, less those that do not."""
    besides = ("out", "jobs", "progress")
    return {"builder": builder} | {
        name: value for name, value in arguments.items() if name not in besides
    }


def build(
    out: str | os.PathLike[str],
    recipe: Recipe,
    items: Iterable[Item],
    speaker: Synthesis,
    progress: bool = True,
) -> Path:
    """Make what of a set is not there yet; gives the path of its manifest.

    `items` are gone through only where anything is missing.

    Raises `DatasetError` for no items, or a folder with a manifest of something else;
    `OtherDatasetError` for a set of another recipe, naming what differs.
    """
    root = Path(out)
    recipe = json.loads(json.dumps(recipe))  # as it is read back
    if whole(root, recipe):
        return root / MANIFEST
    parts = _parts(list(items))
    claim(root, recipe)
    numbers = {key: i for i, key in enumerate(parts)}

    def work(key: str) -> list[Row]:
        return [_written(root, made) for made in speaker.make(parts[key], numbers[key])]

    done = work_through(
        list(parts),
        work,
        folder=root / PARTS,
        asked={"items": _PART},  # the recipe, which decides the rest, is claimed
        progress=progress,
        name=str(recipe["builder"]),
        unit="part",
    )
    for key, rows in done.results.items():
        if not all((root / row["row"]["audio"]).is_file() for row in rows) and work(key) != rows:
            raise DatasetError(
                f"some recordings of {root} are gone, and made anew they are others: other "
                "versions speak here now; remove the folder to make all of it anew"
            )
    return _finished(root, recipe, [row for rows in done.results.values() for row in rows])


# --- Recordings -----------------------------------------------------------------------------------


def _parts(items: Sequence[Item]) -> dict[str, Sequence[Item]]:
    if not items:
        raise DatasetError("there is nothing to make: ask for one clip at least, of kinds it has")
    starts = range(0, len(items), _PART)
    return {f"part-{i:04}": items[at : at + _PART] for i, at in enumerate(starts)}


def _written(root: Path, made: Made) -> Row:
    """Write a recording; gives its line of the manifest, and what else is kept of it."""
    audio = f"audio/{made.id}.flac"
    with written_aside(root / audio) as aside:
        soundfile.write(aside, made.samples, SAMPLE_RATE, subtype="PCM_16")
    own = (audio, made.id, made.text, made.language, made.group)
    return {
        "row": dict(zip(_COLUMNS, own, strict=True)) | dict(made.labels),
        "words": _times(made.words),
        "phones": [[bare(text), *span] for text, *span in _times(made.phones)],
        "samples": len(made.samples),
        "sha256": hashlib.sha256(made.samples.astype("<i2").tobytes()).hexdigest(),
    }


def _times(intervals: Iterable[Interval]) -> list[list[Any]]:
    return [[one.text, round(one.start, 4), round(one.end, 4)] for one in intervals]


# --- What is known of them ------------------------------------------------------------------------


def _finished(root: Path, recipe: Recipe, rows: Sequence[Row]) -> Path:
    files = _files(rows)
    samples = "".join(row["sha256"] for row in rows)
    record = {
        "recipe": recipe,
        "clips": len(rows),
        "seconds": round(sum(row["samples"] for row in rows) / SAMPLE_RATE, 2),
        "files": list(files),
        "versions": {name: _version(name) for name in _PACKAGES},
        "sha256": hashlib.sha256(files[MANIFEST].encode() + samples.encode()).hexdigest(),
    }
    for name, text in files.items():
        write_text(root / name, text)
    if read_record(root).get("sha256") != record["sha256"]:  # versions stay those it was made by
        write_record(root, record)
    return root / MANIFEST


def _files(rows: Sequence[Row]) -> dict[str, str]:
    """What is written beside the recordings, by name."""
    files = {MANIFEST: _csv([row["row"] for row in rows])}
    for kind in ("words", "phones"):
        times = {row["row"]["id"]: row[kind] for row in rows if row[kind]}
        if times:
            files[f"{kind}.json"] = json.dumps(times, ensure_ascii=False) + "\n"
    return files


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
