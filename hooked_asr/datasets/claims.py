"""Whose a folder is: the set of one recipe, whole or begun, or free."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooked_asr.datasets.errors import DatasetError, OtherDatasetError
from hooked_asr.files import written_aside

MANIFEST, RECORD, PARTS = "manifest.csv", "dataset.json", "parts"

Recipe = Mapping[str, Any]


def whole(root: Path, recipe: Recipe) -> bool:
    """Whether all of a set is there."""
    record = read_record(root)
    if record.get("recipe") != recipe or "files" not in record:
        return False
    if not all((root / name).is_file() for name in record["files"]):
        return False
    with (root / MANIFEST).open(encoding="utf-8", newline="") as file:
        return all((root / row["audio"]).is_file() for row in csv.DictReader(file))


def claim(root: Path, recipe: Recipe) -> None:
    """Keep a folder for the set of a recipe.

    Raises `OtherDatasetError` where another set, or any of it, is there, naming what differs;
    `DatasetError` for a manifest of something else.
    """
    record = read_record(root)
    if not record and (root / MANIFEST).exists():
        raise DatasetError(f"{root / MANIFEST} is there, and was not made so: give another folder")
    if record and _begun(root):
        _check_same(root, record["recipe"], recipe)
    if record.get("recipe") != recipe:
        write_record(root, {"recipe": recipe})


def read_record(root: Path) -> dict[str, Any]:
    """What `dataset.json` says, nothing if it is not there."""
    path = root / RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_record(root: Path, record: Mapping[str, Any]) -> None:
    write_text(root / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that does not say so already."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def _check_same(root: Path, theirs: Recipe, ours: Recipe) -> None:
    differ = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if differ:
        said = "; ".join(f"{one} was {theirs.get(one)!r}, now {ours.get(one)!r}" for one in differ)
        raise OtherDatasetError(
            f"{root} holds another set: {said}. Ask for the same to go on with it, give another "
            "folder, or remove this one"
        )


def _begun(root: Path) -> bool:
    """Whether any part is there; before, a folder is free for another set."""
    records = (root / PARTS).glob("records-*.jsonl")
    return (root / MANIFEST).exists() or any(one.read_bytes().count(b"\n") > 1 for one in records)
