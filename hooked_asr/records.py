"""Results of long work, kept as they come: what was killed at any moment goes on where it was.

A folder holds one file for each process, `records-00000.jsonl` and so on. Its first line says what
was asked; every other line is one result under its key, written, and on the disk, before the work
goes on. The line that a kill cut short has no end, and is dropped. Floats are written so that they
read back as the same floats; NaN and infinities as Python's `json` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hooked_asr.errors import HookedASRError

_FORMAT = 1


class RecordsError(HookedASRError):
    """A folder of records that cannot be gone on with."""


class Records:
    """One process's end of a folder of records: it appends to its own file, and reads all.

    Made by `open_records`.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], own: int) -> None:
        self.folder = folder
        self.asked = asked
        self._own = own  # file descriptor, at the end of a whole line

    def append(self, key: str, result: Any) -> None:
        """Keep a result (whatever JSON holds) under its key; returns when it is on the disk."""
        _append(self._own, _line({"key": key, "result": result}))

    def append_failure(self, key: str, reason: str) -> None:
        """Keep why there is no result for a key."""
        _append(self._own, _line({"key": key, "failure": reason}))

    def read(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The results of all processes so far, and the failures behind which no result came.

        Raises `RecordsError` for records of other work, or a damaged file.
        """
        results: dict[str, Any] = {}
        failures: dict[str, str] = {}
        for path in _files(self.folder):
            for record in _read(path, self.asked):
                if "result" in record:
                    results.setdefault(record["key"], record["result"])
                else:
                    failures[record["key"]] = record["failure"]
        return results, {key: why for key, why in failures.items() if key not in results}

    def size(self) -> int:
        """Bytes in all files: while it stays, nothing new has come."""
        return sum(path.stat().st_size for path in _files(self.folder))


@contextmanager
def open_records(
    folder: str | os.PathLike[str], asked: Mapping[str, Any], rank: int = 0
) -> Iterator[Records]:
    """The records in a folder, new or to go on with.

    - `asked`: all that the results depend on, as JSON holds it; who asks for something else is
      refused, and told what differs.
    - `rank`: which process this is; each has a file of its own.

    Raises `RecordsError` for records of other work, a damaged file, or one that another process is
    writing to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps(asked))  # tuples become the lists that they are read back as
    path = folder / f"records-{rank:05d}.jsonl"
    for other in _files(folder):
        for _ in _read(other, asked):
            break  # others' headers, before anything is written
    own = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(own, path)
        _drop_torn_line(own, path)
        if not os.fstat(own).st_size:
            _append(own, _line({"records": _FORMAT, "asked": asked}))
            _sync_folder(folder)
        yield Records(folder, asked, own)
    finally:
        os.close(own)


# --- Reading --------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("records-*.jsonl"))


def _read(path: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of one file, which another process may be appending to."""
    *lines, _ = path.read_bytes().split(b"\n")  # behind the last line end: nothing, or a torn line
    if not lines:
        return []
    header, *records = [_parsed(line, path, number) for number, line in enumerate(lines, start=1)]
    if header.get("records") != _FORMAT or not isinstance(header.get("asked"), dict):
        raise RecordsError(f"{path} holds no records of this library's: give another folder")
    _check_same(header["asked"], asked, path)
    for number, record in enumerate(records, start=2):
        if "key" not in record or not {"result", "failure"} & record.keys():
            raise _damaged(path, number)
    return records


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise _damaged(path, number)
    return fields


def _damaged(path: Path, number: int) -> RecordsError:
    return RecordsError(
        f"line {number} of {path} is damaged: remove that line, and its work is done again"
    )


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> None:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        differences = "; ".join(
            f"{name} was {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in names
        )
        raise RecordsError(
            f"{path.parent} holds results of other work: {differences}. Ask for the same to go on "
            "with it, give another folder, or remove this one"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


# --- Writing --------------------------------------------------------------------------------------


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _append(file: int, line: bytes) -> None:
    """Append a line, and wait until it is on the disk; where that fails, none of it stays."""
    before = os.fstat(file).st_size
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except BaseException:  # a full disk, or Ctrl-C
        os.ftruncate(file, before)
        raise


def _drop_torn_line(file: int, path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(file, whole)


def _lock(file: int, path: Path) -> None:
    """Hold the file until it is closed, or the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordsError(
            f"another process is writing to {path}: wait for it, or give another folder"
        ) from error
    except OSError:  # a file system without locks
        return


def _sync_folder(folder: Path) -> None:
    """Have a new file's name on the disk too, where a folder can be opened."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
