"""Writing files so that nothing half-written is ever found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which becomes `path` only once the block has ended without an error.

    It lies beside the target (a rename is atomic only within one file system) and keeps its suffix
    (writers choose a format by it).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to write files to; once the block has ended without an error, they move to
    `folder`, each in the place of an older one of its name.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
        yield Path(aside)
        for file in sorted(Path(aside).iterdir()):
            os.replace(file, target / file.name)
