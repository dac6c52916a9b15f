"""A reading kept in a folder, with all that it depends on: asked for again, it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooked_asr.long_work import work_through
from hooked_asr.processes import Process
from hooked_asr.sae.reading.reading import FeatureReading

_READING = "reading"  # the folder in the folder, and the key


def kept_reading(
    out: str | os.PathLike[str], asked: Mapping[str, Any], make: Callable[[], FeatureReading]
) -> FeatureReading:
    """The reading in `out`, made and saved where there is none yet.

    Raises `RecordsError` where another was asked for; and what `make` raises.
    """
    folder = Path(out) / _READING

    def work(_: str) -> dict[str, int]:
        made = make()
        made.save(folder)
        return {"features": len(made.numbers), "clips": len(made.clips)}

    alone = Process(0, 1)
    work_through([_READING], work, folder=out, asked=asked, process=alone, progress=False)
    return FeatureReading.load(folder)


def alignments_asked(asked: Any) -> str | None:
    """An alignment's name, or a hash of what it says: of the file, or of the mapping."""
    if isinstance(asked, Mapping):
        said = json.dumps({name: list(own) for name, own in asked.items()}, default=repr)
        return hashlib.sha256(said.encode()).hexdigest()
    if asked is None or not Path(asked).is_file():
        return asked if asked is None else os.fspath(asked)
    return hashlib.sha256(Path(asked).read_bytes()).hexdigest()


def control_asked(control: FeatureReading | None) -> dict[str, Any] | None:
    """What tells one control from another."""
    if control is None:
        return None
    density = hashlib.sha256(control.density.tobytes()).hexdigest()
    about = {"site": control.site, "weights (hash)": control.weights, "density (hash)": density}
    return about | {"settings": control.settings}
