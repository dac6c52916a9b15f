"""Which recordings a sweep runs over, and what each is patched from: a list, or a file of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hooked_asr.manifests import ManifestError, Row, check_audio, checked, manifest_rows

# A reference that is a made sound ("noise", "pink:5"), and not a file.
_MADE = re.compile(r"[a-z]{2,}(:.*)?", re.DOTALL)


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

    @property
    def files(self) -> list[Path]:
        if self.reference is None or not _is_file(self.reference):
            return [self.audio_path]
        return [self.audio_path, self.folder / self.reference]

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
        return checked(_pair(row) for row in manifest_rows(Path(pairs), _check_columns))
    return checked(_listed(f"row {i}", one) for i, one in enumerate(pairs))


def _listed(where: str, one: Mapping[str, Any] | Pair) -> tuple[str, Pair]:
    if isinstance(one, Pair):
        return where, one
    _check_columns(where, list(one))
    return _pair(Row(where, one))


def _pair(row: Row) -> tuple[str, Pair]:
    return row.where, Pair(**row.given(_COLUMNS), folder=row.folder)


def _check_columns(where: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in _COLUMNS:
            near = get_close_matches(str(name), _COLUMNS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ManifestError(
                f"{where}: no column {name!r}; {hint}there are {', '.join(_COLUMNS)}"
            )
    check_audio(where, names)


def _is_file(reference: str) -> bool:
    return _MADE.fullmatch(reference) is None
