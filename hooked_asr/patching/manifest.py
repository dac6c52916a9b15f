"""Which recordings a sweep runs over, and what each is patched from: a list, or a file of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hooked_asr.errors import HookedASRError

# A reference that is a made sound ("noise", "pink:5"), and not a file.
_MADE = re.compile(r"[a-z]{2,}(:.*)?", re.DOTALL)


class ManifestError(HookedASRError):
    """A list of pairs that cannot be used, and where in it."""


@dataclass(frozen=True)
class Pair:
    """A recording, and what is patched into its run.

    - `audio`: its path, seen from `folder`.
    - `id`: what it is called; the path, if not given.
    - `reference`, `text`, `metric`: see `patching_inputs`; None leaves them to the sweep.
    - `language`: that spoken; None leaves it to the sweep.
    - `group`: pairs of one group (a speaker, a recording) are resampled together.
    """

    audio: str
    id: str = ""
    reference: str | None = None
    text: str | None = None
    metric: str | None = None
    language: str | None = None
    group: str | None = None
    folder: Path = field(default=Path(), compare=False, repr=False)

    @property
    def audio_path(self) -> Path:
        return self.folder / self.audio

    def reference_in(self, default: str | None) -> str | None:
        """What is patched in: its path, where it is a file of the manifest's folder, or its name.

        >>> pairs = [Pair("a.wav", reference=one, folder=Path("to")) for one in ("b.wav", "noise")]
        >>> [pair.reference_in(None) for pair in pairs]
        ['to/b.wav', 'noise']
        """
        if self.reference is None:
            return default
        return str(self.folder / self.reference) if _is_file(self.reference) else self.reference


_COLUMNS = [one.name for one in fields(Pair) if one.name != "folder"]
Row = tuple[str, Mapping[str, Any]]  # where it stands, and what it says


def read_pairs(
    pairs: str | os.PathLike[str] | Iterable[Mapping[str, Any] | Pair],
) -> list[Pair]:
    """Pairs from a manifest, or from rows that say the same.

    - A manifest is CSV with a header (.csv), or JSON lines (.jsonl): columns, or keys, as the
      fields of `Pair`, of which only `audio` must be there; an empty cell, or null, is one not
      given. Paths are seen from the manifest's folder.
    - Rows are dictionaries with such keys, or `Pair`s. Paths are seen from the current folder.

    Raises `ManifestError`, with the line or row, for an unknown column, an id that is there twice,
    a file that is missing, or no pair at all.
    """
    if isinstance(pairs, str | os.PathLike):
        path = Path(pairs)
        return _checked(_pair(where, said, path.parent) for where, said in _lines(path))
    rows = ((f"row {i}", one) for i, one in enumerate(pairs))
    return _checked(
        (where, one) if isinstance(one, Pair) else _pair(where, one, Path()) for where, one in rows
    )


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """A name for all that the pairs say: whoever changes a row, or their order, changes it."""
    said = [[getattr(pair, name) for name in _COLUMNS] for pair in pairs]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# --- Reading --------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Row]:
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise ManifestError(f"a manifest is a file {' or '.join(readers)}; got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"there is no manifest {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    return readers[path.suffix](path, text)


def _csv_lines(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        _check_columns(f"{path}, line 1", reader.fieldnames or [])
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ManifestError(
                    f"{where}: more cells than columns; a cell with a comma in it stands in quotes"
                )
            yield where, {name: cell or None for name, cell in row.items()}
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}") from error


def _json_lines(path: Path, text: str) -> Iterator[Row]:
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
        yield where, row


# --- Checking -------------------------------------------------------------------------------------


def _pair(where: str, said: Mapping[str, Any], folder: Path) -> tuple[str, Pair]:
    _check_columns(where, list(said))
    given = {name: value for name, value in said.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, os.PathLike) or (name in ("id", "group") and type(value) is int):
            given[name] = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
        elif not isinstance(value, str):
            raise ManifestError(f"{where}: {name} is a text; got {value!r}")
    if not given.get("audio"):
        raise ManifestError(f"{where}: no audio; give the path of a recording")
    return where, Pair(**given, folder=folder)


def _check_columns(where: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in _COLUMNS:
            near = get_close_matches(str(name), _COLUMNS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ManifestError(
                f"{where}: no column {name!r}; {hint}there are {', '.join(_COLUMNS)}"
            )
    if "audio" not in names:
        raise ManifestError(
            f"{where}: no column 'audio', the path of each recording; got {', '.join(names)}"
        )


def _checked(rows: Iterable[tuple[str, Pair]]) -> list[Pair]:
    """All pairs, each with an id of its own, and its files there."""
    places: dict[str, str] = {}
    pairs = []
    for where, pair in rows:
        named = pair if pair.id else _with_id(pair)
        if named.id in places:
            raise ManifestError(
                f"{where}: the id {named.id!r} is there already ({places[named.id]}): give each "
                "pair an id of its own"
            )
        places[named.id] = where
        for file in filter(None, (named.audio_path, _reference_file(named))):
            if not file.is_file():
                raise ManifestError(f"{where}: there is no file {str(file)!r}")
        pairs.append(named)
    if not pairs:
        raise ManifestError("there are no pairs: give at least one")
    return pairs


def _with_id(pair: Pair) -> Pair:
    said = {one.name: getattr(pair, one.name) for one in fields(Pair)}
    return Pair(**said | {"id": pair.audio})


def _reference_file(pair: Pair) -> Path | None:
    if pair.reference is None or not _is_file(pair.reference):
        return None
    return pair.folder / pair.reference


def _is_file(reference: str) -> bool:
    return _MADE.fullmatch(reference) is None
