"""Numbers of an experiment beside the paper's, and all that they depend on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hooked_asr.files import written_aside
from hooked_asr.manifests import Clips
from hooked_asr.reproduce.data import data_hash
from hooked_asr.reproduce.errors import ResultsError
from hooked_asr.reproduce.running import command
from hooked_asr.weights.fingerprint import fingerprint

_FORMAT = 1
_PACKAGES = ("hooked_asr", "torch", "transformers", "numpy", "scikit-learn", "sae-lens")
_MODULES = {"scikit-learn": "sklearn", "sae-lens": "sae_lens"}  # as they are imported

Value = float | int | str | None


@dataclass(frozen=True)
class Number:
    """One line of a table of results.

    - `name`: what was measured; runs are compared by it.
    - `value`: a number, a word or two, or None where nothing could be measured. In "%" (`unit`) a
      value is a share, from 0 to 1, and `low` to `high` is its interval.
    - `where`: the layer, head or language that it was found at; `n`: of how many.
    - `paper`: what the paper says of it, as it says it.
    """

    name: str
    value: Value
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    where: str = ""
    paper: str = ""

    def __str__(self) -> str:
        found = _told(self.value, self.unit)
        if self.low is not None and self.high is not None:
            found += f" [{_told(self.low, self.unit)}, {_told(self.high, self.unit)}]"
        about = ", ".join(filter(None, (self.where, f"n = {self.n}" if self.n else "")))
        return f"{found} ({about})" if about else found


@dataclass(repr=False)
class Results:
    """A table of numbers beside the paper's, kept as JSON with all that they depend on.

    >>> results = Results("08", title="Repetition")
    >>> results.add("loops mended by one head", 0.5, unit="%", where="2.5", paper="78.1 % (18.13)")
    >>> print(results)
                              paper           here
    loops mended by one head  78.1 % (18.13)  50.0 % (2.5)

    - `tutorial`: its number; `title`: what it is called.
    - `model`: its name; `weights`: the `fingerprint`. `data`: what the recordings are called;
      `data_hash`: of their samples, and all that is said of them.
    - `notes`: what a reader has to know beside the numbers.
    - `command`: what was run; `versions`: of Python and the packages that compute.
    """

    tutorial: str
    title: str = ""
    model: str = ""
    weights: str = ""
    data: str = ""
    data_hash: str = ""
    seed: int = 0
    command: str = field(default_factory=command)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    numbers: list[Number] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, tutorial: str, title: str, model: Any, clips: Clips, *, seed: int = 0, data: str = ""
    ) -> Results:
        """An empty table for a model and recordings, which are hashed as they are.

        - `clips`: a manifest, a folder or a list, as everywhere; `data`: what they are called, by
          default the name of their folder.

        Raises `ManifestError` as `read_clips`.
        """
        return cls(
            tutorial=tutorial,
            title=title,
            model=model.name,
            weights=fingerprint(model),
            data=data or _called(clips),
            data_hash=data_hash(clips),
            seed=seed,
        )

    def add(
        self,
        name: str,
        value: Value,
        *,
        unit: str = "",
        interval: tuple[float, float] | None = None,
        n: int | np.integer[Any] | None = None,
        where: str = "",
        paper: str = "",
    ) -> None:
        """Add a line; see `Number`.

        Raises `ResultsError` for a name that is there already, or a share ("%") beyond 0 to 1.
        """
        if any(one.name == name for one in self.numbers):
            raise ResultsError(f"{name!r} is in the table already: give each number its own name")
        if unit == "%" and isinstance(value, float | int) and not -1 <= value <= 1:
            raise ResultsError(f"{name!r} is in %, which takes a share from 0 to 1; got {value!r}")
        low, high = interval or (None, None)
        self.numbers.append(
            Number(name, _plain(value), unit, _plain(low), _plain(high), _plain(n), where, paper)
        )

    def note(self, text: str) -> None:
        """Add a sentence that belongs to the numbers."""
        self.notes.append(" ".join(text.split()))

    def to_pandas(self) -> pd.DataFrame:
        """The table as it is read: the paper's numbers, and those found here."""
        rows = {one.name: {"paper": one.paper, "here": str(one)} for one in self.numbers}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table with all that it depends on as JSON; gives the path.

        Raises `ResultsError` for another suffix.
        """
        target = _json(path)
        with written_aside(target) as aside:
            text = json.dumps({"results": _FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
            aside.write_text(text + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read what `save` wrote.

        Raises `ResultsError` for a file that holds something else.
        """
        target = _json(path)
        try:
            fields = json.loads(target.read_text(encoding="utf-8"))
            if fields.pop("results") != _FORMAT:
                raise KeyError("results")
            numbers = [Number(**one) for one in fields.pop("numbers")]
            return cls(**fields, numbers=numbers)
        except FileNotFoundError:
            raise ResultsError(f"there is no file {os.fspath(path)!r}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{os.fspath(path)!r} holds no results of a tutorial's") from error

    def __repr__(self) -> str:
        width = max((len(one.name) for one in self.numbers), default=0)
        said = max((len(one.paper) for one in self.numbers), default=0)
        lines = [f"{'':{width}}  {'paper':{said}}  here"]
        lines += [f"{one.name:{width}}  {one.paper:{said}}  {one}" for one in self.numbers]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"{self.to_pandas().to_html(border=0)}{notes}"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on, where installed."""
    installed = {name: version(name) for name in _PACKAGES if find_spec(_MODULES.get(name, name))}
    return {"python": platform.python_version(), **installed}


def differences(runs: Mapping[str, Results]) -> dict[str, list[str]]:
    """What runs do not share of all that numbers depend on, a value for each."""
    facts = ("model", "weights", "data", "data_hash", "seed", "command")
    found = {name: [str(getattr(run, name)) for run in runs.values()] for name in facts}
    packages = sorted({package for run in runs.values() for package in run.versions})
    for package in packages:
        found[package] = [run.versions.get(package, "none") for run in runs.values()]
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _told(value: Value, unit: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if unit == "%":
        return f"{100 * value:.1f} %"
    text = str(value) if isinstance(value, int) else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _called(clips: Clips) -> str:
    if not isinstance(clips, str | os.PathLike):
        return "a list of recordings"
    path = Path(clips)
    return path.name if path.is_dir() else f"{path.absolute().parent.name}/{path.name}"


def _json(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".json":
        raise ResultsError(f"results are kept as .json; got {os.fspath(path)!r}")
    return target
