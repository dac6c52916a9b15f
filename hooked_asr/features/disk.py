"""A store's files: each is there whole and on the disk, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hooked_asr.features.errors import FeatureError
from hooked_asr.files import written_aside

INDEX, BEGUN = "index.json", "begun.json"
_FORMAT = 1


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` once what was written is on the disk."""
    with written_aside(path) as aside:
        yield aside
        _sync(aside)
    with suppress(OSError):  # a folder cannot be opened everywhere
        _sync(path.parent)


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    text = json.dumps({"features": _FORMAT, **said}, ensure_ascii=False, indent=0)
    with kept(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises `FeatureError` for a file that is missing, damaged or something else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        known = said["features"] == _FORMAT
    except FileNotFoundError:
        raise FeatureError(_no_store(path)) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FeatureError(
            f"{path} is damaged, or no file of a feature store ({error!r}): remove it, and harvest "
            "again"
        ) from error
    if not known:
        raise FeatureError(
            f"{path} is of format {said['features']!r}, and this version reads {_FORMAT}: harvest "
            "again"
        )
    return dict(said)


def begin(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Note what is asked in a store's folder, and give what was noted by whoever came first.

    Raises `FeatureError` for a folder that holds features of other work, telling what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = [folder / name for name in (INDEX, BEGUN) if (folder / name).exists()]
    if not known:
        write_json(folder / BEGUN, said)
    first = read_json(known[0] if known else folder / BEGUN)
    _check_same(first["asked"], said["asked"], folder)
    return first


def sweep_up(folder: Path) -> None:
    """Remove what killed processes were writing; when no other writes any more."""
    for path in folder.glob(".*"):
        if path.name.startswith((".shard-", ".index.", ".begun.")):
            path.unlink(missing_ok=True)


def _no_store(path: Path) -> str:
    if path.name == INDEX and (path.parent / BEGUN).exists():
        return (
            f"the features in {str(path.parent)!r} are not all there: run the same harvest again, "
            "and it goes on where it was"
        )
    return (
        f"there is no feature store in {str(path.parent)!r}: harvest(model, clips, …, out=) is one"
    )


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        differences = "; ".join(
            f"{name} was {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in names
        )
        raise FeatureError(
            f"{folder} holds features of other work: {differences}. Ask for the same to go on with "
            "it, give another folder, or remove this one"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
