"""Readings as files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_asr.files import folder_written_aside
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.alignments import Aligned
from hooked_asr.sae.reading.excerpts import Peaks
from hooked_asr.sae.reading.labels import Association
from hooked_asr.sae.reading.purity import Purity
from hooked_asr.sae.reading.reading import Control, FeatureReading
from hooked_asr.sae.reading.row_labels import ReadClip
from hooked_asr.weights.tensor_file import read_tensors, write_tensors

FILE = "reading.safetensors"
_KIND = "reading of features"
_SAID = ("site", "model", "weights", "clock", "numbers", "settings", "failed")
_NUMBERS = ("density", "mean", "greatest", "histogram")
_PEAKS = ("clip", "row", "curve")
_SCORES = ("fitted", "f1", "bits", "threshold", "shuffled", "chance", "rows")
_SHARES = ("mass", "active", "base")


def save(reading: FeatureReading, folder: str | os.PathLike[str]) -> None:
    """Write a reading to a folder, with its tables as CSV."""
    with folder_written_aside(folder) as aside:
        write_tensors(aside / FILE, _KIND, _tensors(reading), _said(reading), SAEError)
        reading.to_pandas().to_csv(aside / "features.csv", index=False)
        for kind in reading.kinds:
            stem = "".join(one if one.isalnum() else "_" for one in kind)
            reading.table(kind).to_csv(aside / f"label-{stem}.csv", index=False)


def load(folder: str | os.PathLike[str]) -> FeatureReading:
    """What `save` wrote.

    Raises `SAEError` for a folder that holds no reading.
    """
    tensors, said = read_tensors(Path(folder) / FILE, _KIND, SAEError)
    arrays: dict[str, Any] = {name: one.numpy() for name, one in tensors.items()}
    names: Mapping[str, list[str]] = said["names"]
    control = said["control"]
    return FeatureReading(
        **{name: said[name] for name in _SAID},
        **{name: arrays[name] for name in _NUMBERS},
        clips=[ReadClip(**one) for one in said["clips"]],
        peaks=Peaks(*(arrays[f"peaks.{name}"] for name in _PEAKS)),
        associations={
            kind: Association(
                kind, own[:-1], *(arrays[f"{kind}.scores.{name}"] for name in _SCORES)
            )
            for kind, own in names.items()
        },
        purities={
            kind: Purity(kind, own, *(arrays[f"{kind}.shares.{name}"] for name in _SHARES))
            for kind, own in names.items()
        },
        alignments={
            kind: {clip: [Aligned(*one) for one in entries] for clip, entries in of.items()}
            for kind, of in said["alignments"].items()
        },
        control=None if control is None else Control(**control),
    )


def _tensors(reading: FeatureReading) -> dict[str, Tensor]:
    arrays = {name: getattr(reading, name) for name in _NUMBERS}
    arrays |= {f"peaks.{name}": getattr(reading.peaks, name) for name in _PEAKS}
    for kind, scores in reading.associations.items():
        arrays |= {f"{kind}.scores.{name}": getattr(scores, name) for name in _SCORES}
        shares = reading.purities[kind]
        arrays |= {f"{kind}.shares.{name}": getattr(shares, name) for name in _SHARES}
    return {name: torch.from_numpy(one) for name, one in arrays.items()}


def _said(reading: FeatureReading) -> dict[str, Any]:
    return {
        **{name: getattr(reading, name) for name in _SAID},
        "clips": [asdict(one) for one in reading.clips],
        "names": {kind: one.names for kind, one in reading.purities.items()},
        "alignments": {
            kind: {
                clip: [[one.label, one.start, one.end] for one in entries]
                for clip, entries in of.items()
            }
            for kind, of in reading.alignments.items()
        },
        "control": None if reading.control is None else asdict(reading.control),
    }
