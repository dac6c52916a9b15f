"""How a checkpoint was trained: recipe, versions and losses, kept beside its weights."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.nano.recipe import Phase, Recipe

FILE = "training.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "soxr", "espeakng-loader")


class RecordError(HookedASRError):
    """A record of a training that is missing or damaged."""


@dataclass(frozen=True)
class TrainingRecord:
    """`curve` has a row for every 20 steps: step, losses (nats), rate, seconds since the start."""

    recipe: Recipe
    versions: dict[str, str]
    curve: list[dict[str, float | int]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `training.json` into a folder."""
        with written_aside(Path(folder) / FILE) as aside:
            aside.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TrainingRecord:
        """Read `training.json` from a folder.

        Raises `RecordError` where there is none, or it says something else.
        """
        path = Path(folder) / FILE
        if not path.exists():
            raise RecordError(f"{path} is missing: it says how the model was trained")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            phases = tuple(Phase(**phase) for phase in fields["recipe"].pop("phases"))
            recipe = Recipe(**fields["recipe"], phases=phases)
            return cls(recipe, fields["versions"], fields["curve"])
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is no record of a training: {error!r}") from error


def installed_versions() -> dict[str, str]:
    """The versions that decide what a training gives, as they are here."""
    return {"Python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"  # espeak-ng may be the system's own
