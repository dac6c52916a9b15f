"""Results of several runs side by side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hooked_asr.reproduce.errors import ResultsError
from hooked_asr.reproduce.results import Results

_ABOUT = (
    "Written by `hooked-asr results`; each number comes from the command over its column, which "
    "writes them as JSON with the model's and the recordings' hashes, seed and versions."
)


def read_results(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[Path, Results]]:
    """The results of files, and of all files in folders, in the tutorials' order.

    Raises `ResultsError` for a path that is not there, a file of something else, or none at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ResultsError(f"there is nothing at {str(path)!r}: give files or folders")
        files += sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ResultsError("there are no results in the folders given: they are .json files")
    found = [(file, Results.load(file)) for file in files]
    return sorted(found, key=lambda one: one[1].tutorial)


def side_by_side(runs: Mapping[str, Results]) -> pd.DataFrame:
    """What runs of one tutorial found, a column for each beside the paper's."""
    names = dict.fromkeys(one.name for run in runs.values() for one in run.numbers)
    paper = {one.name: one.paper for run in runs.values() for one in run.numbers if one.paper}
    columns: dict[str, list[str]] = {"paper": [paper.get(name, "") for name in names]}
    for label, run in runs.items():
        found = {one.name: str(one) for one in run.numbers}
        columns[label] = [found.get(name, "") for name in names]
    return pd.DataFrame(columns, index=list(names))


def by_tutorial(found: Sequence[tuple[Path, Results]]) -> dict[str, dict[str, Results]]:
    """Runs by their tutorial, each under a label that tells them apart: model, or else the file."""
    grouped: dict[str, list[tuple[Path, Results]]] = {}
    for path, run in found:
        grouped.setdefault(run.tutorial, []).append((path, run))
    return {number: _labelled(runs) for number, runs in grouped.items()}


def markdown(found: Sequence[tuple[Path, Results]]) -> str:
    """All tables as one Markdown page."""
    parts = ["# Results", _ABOUT]
    for number, runs in by_tutorial(found).items():
        title = next(iter(runs.values())).title
        parts += [f"## {number} {title}", _table(side_by_side(runs)), *map(_source, runs.items())]
    return "\n\n".join(parts) + "\n"


def _labelled(runs: Sequence[tuple[Path, Results]]) -> dict[str, Results]:
    names = [run.model.rstrip("/").rpartition("/")[2] for _, run in runs]
    counts = Counter(names)
    return {
        name if counts[name] == 1 else str(path): run
        for name, (path, run) in zip(names, runs, strict=True)
    }


def _table(table: pd.DataFrame) -> str:
    head = ["", *table.columns]
    lines = [head, ["---"] * len(head), *([str(name), *row] for name, row in _rows(table))]
    return "\n".join("| " + " | ".join(_cell(one) for one in line) + " |" for line in lines)


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, list[str]]]:
    return (
        (str(name), [str(one) for one in row])
        for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _source(labelled: tuple[str, Results]) -> str:
    label, run = labelled
    facts = f"*{label}* on {run.data} (`{run.data_hash[:12]}`), seed {run.seed}: `{run.command}`."
    return " ".join([facts, *run.notes])
