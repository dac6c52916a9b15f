"""Recordings and what is known of each: a folder, a list, or a file with a line for each."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from hooked_asr.errors import HookedASRError

_SOUNDS = ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .sph .w64 .wav"
_SUFFIXES = _SOUNDS.split()


class ManifestError(HookedASRError):
    """A list of recordings that cannot be used, and where in it."""


@dataclass(frozen=True)
class Clip:
    """A recording, and what is known of it.

    - `audio`: its path, seen from `folder`.
    - `id`: what it is called; the path, if not given.
    - `text`: what is said in it; `language`: the one spoken.
    - `group`: what it shares with other recordings (a speaker, say) that are no independent ones.
    - `labels`: anything else, by name.
    """

    audio: str
    id: str = ""
    text: str | None = None
    language: str | None = None
    group: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False, repr=False)

    @property
    def audio_path(self) -> Path:
        return self.folder / self.audio

    @property
    def files(self) -> list[Path]:
        return [self.audio_path]


Clips = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Mapping[str, Any] | Clip]


def read_clips(clips: Clips) -> list[Clip]:
    """The recordings of a folder, a manifest, or a list, with what is known of each.

    - A folder: all sound files in it and in the folders below, by their paths; hidden ones are left
      out.
    - A manifest: CSV with a header (.csv), or JSON lines (.jsonl): columns, or keys, as the fields
      of `Clip`, of which only `audio` must be there; all others are `labels`. An empty cell, or
      null, is one not given. Paths are seen from the manifest's folder.
    - A list: of paths, or of dictionaries that say what a manifest's lines would; paths are seen
      from the current folder.
    - A path to a sound: a list of one recording.

    Raises `ManifestError`, with the line or row, for an id that is there twice, a file that is
    missing, what is no manifest, or no recording at all.
    """
    if isinstance(clips, str | os.PathLike):
        path = Path(clips)
        if path.is_dir():
            return _of_folder(path)
        if path.suffix.lower() not in _SUFFIXES:
            return checked(as_clip(row) for row in manifest_rows(path, check_audio))
        clips = [path]
    return checked(_listed(f"row {i}", one) for i, one in enumerate(clips))


def split_groups(
    clips: Sequence[Clip], share: float = 0.5, seed: int = 0
) -> tuple[list[Clip], list[Clip]]:
    """Recordings in two parts that share no group, each in their order.

    >>> clips = [Clip(f"{i}.wav", str(i), group="ab"[i % 2]) for i in range(4)]
    >>> [[clip.id for clip in part] for part in split_groups(clips)]
    [['1', '3'], ['0', '2']]

    - `share`: of the groups, how many are in the first part. A recording without a group is one.
    - `seed`: by which they are drawn.

    Raises `ManifestError` where a part would be empty.
    """
    of = [clip.group or f"recording {clip.id}" for clip in clips]
    groups = sorted(set(of))
    n = round(share * len(groups))
    if not 0 < n < len(groups):
        raise ManifestError(
            f"{len(groups)} groups cannot be split at a share of {share}: give the recordings a "
            "column group (a speaker, say) with several in it"
        )
    first = set(random.Random(seed).sample(groups, n))
    parts = (
        [clip for clip, own in zip(clips, of, strict=True) if (own in first) is wanted]
        for wanted in (True, False)
    )
    return next(parts), next(parts)


def clips_hash(clips: Sequence[Any]) -> str:
    """A name for all that clips (or other rows) say: whoever changes one, or their order, changes
    it."""
    names = [one.name for one in fields(clips[0]) if one.name != "folder"] if clips else []
    said = [[getattr(clip, name) for name in names] for clip in clips]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _of_folder(folder: Path) -> list[Clip]:
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    sounds = sorted(path for path in inside if _is_sound(path))
    if not sounds:
        raise ManifestError(
            f"there are no sound files in {str(folder)!r} (looked for {_SOUNDS}): give another "
            "folder, or a manifest"
        )
    clips = [Clip(audio=path.as_posix(), folder=folder) for path in sounds]
    return checked((clip.audio, clip) for clip in clips)


def _is_sound(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


def _listed(where: str, one: Any) -> tuple[str, Clip]:
    if isinstance(one, Clip):
        return where, one
    if isinstance(one, str | os.PathLike):
        return where, Clip(audio=os.fspath(one))
    check_audio(where, list(one))
    return as_clip(Row(where, one))


# --- Lines of a manifest --------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one line says, where it stands, and from where its paths are seen."""

    where: str
    said: Mapping[str, Any]
    folder: Path = Path()

    def given(self, texts: Sequence[str]) -> dict[str, Any]:
        """All that is said; those named `texts` are texts.

        Raises `ManifestError` where they are not.
        """
        found = {name: value for name, value in self.said.items() if value is not None}
        for name in found.keys() & set(texts):
            value = found[name]
            if isinstance(value, os.PathLike):
                found[name] = os.fspath(value)
            elif name in ("id", "group") and type(value) is int:
                found[name] = str(value)
            elif not isinstance(value, str):
                raise ManifestError(f"{self.where}: {name} is a text; got {value!r}")
        if not found.get("audio"):
            raise ManifestError(f"{self.where}: no audio; give the path of a recording")
        return found


def as_clip(row: Row) -> tuple[str, Clip]:
    """A line as a recording, and where it stands.

    Raises `ManifestError` for values that are no texts.
    """
    known = [one.name for one in fields(Clip) if one.name not in ("folder", "labels")]
    given = row.given(known)
    own = {name: given.pop(name) for name in known if name in given}
    labels = given.pop("labels", {}) | given
    return row.where, Clip(**own, labels=labels, folder=row.folder)


def check_audio(where: str, names: Sequence[str]) -> None:
    """Raises `ManifestError` where columns lack the one that must be there."""
    if "audio" not in names:
        raise ManifestError(
            f"{where}: no column 'audio', the path of each recording; got {', '.join(names)}"
        )


def manifest_rows(path: Path, check: Callable[[str, Sequence[str]], None]) -> Iterator[Row]:
    """The lines of a CSV or JSONL file; `check(where, names)` refuses columns.

    Raises `ManifestError` for what is neither.
    """
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise ManifestError(f"a manifest is a file {' or '.join(readers)}; got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"there is no manifest {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    return readers[path.suffix](path, text, check)


def _csv_lines(path: Path, text: str, check: Callable[..., None]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        check(f"{path}, line 1", reader.fieldnames or [])
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ManifestError(
                    f"{where}: more cells than columns; a cell with a comma in it stands in quotes"
                )
            yield Row(where, {name: cell or None for name, cell in row.items()}, path.parent)
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}") from error


def _json_lines(path: Path, text: str, check: Callable[..., None]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"{where}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{where}: a line holds one object, {{…}}; got {line.strip()!r}")
        check(where, list(row))
        yield Row(where, row, path.parent)


# --- Checking -------------------------------------------------------------------------------------


@runtime_checkable
class _Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def audio(self) -> str: ...
    @property
    def files(self) -> list[Path]: ...


Named = TypeVar("Named", bound=_Named)


def checked(rows: Iterable[tuple[str, Named]]) -> list[Named]:
    """All rows, with where they stand, each with an id of its own and its files there.

    Raises `ManifestError` where they are not, and where there are none.
    """
    places: dict[str, str] = {}
    found = []
    for where, row in rows:
        named = row if row.id else _with_id(row)
        if named.id in places:
            raise ManifestError(
                f"{where}: the id {named.id!r} is there already ({places[named.id]}): give each "
                "row an id of its own"
            )
        places[named.id] = where
        for file in named.files:
            if not file.is_file():
                raise ManifestError(f"{where}: there is no file {str(file)!r}")
        found.append(named)
    if not found:
        raise ManifestError("there are no recordings: give at least one")
    return found


def _with_id(row: Any) -> Any:
    said = {one.name: getattr(row, one.name) for one in fields(row)}
    return type(row)(**said | {"id": row.audio})
