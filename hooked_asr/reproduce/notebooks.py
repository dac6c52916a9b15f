"""The tutorials: notebooks that come with the package."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooked_asr.reproduce.errors import TutorialError

_PACKAGED = Path(__file__).parent / "tutorials"
_SOURCE = Path(__file__).parents[2] / "tutorials"  # where the package is used from its repository
_TAG = "parameters"


@dataclass(frozen=True)
class Tutorial:
    """A notebook: its number ("08"), where it lies, what it is called, and what it may be asked.

    `parameters` holds the defaults of its cell that is tagged so, the names in their order.
    """

    number: str
    path: Path
    title: str
    parameters: dict[str, Any]

    def read(self) -> Any:
        """The notebook, as `nbformat` has it."""
        return _read(self.path)


def tutorials() -> list[Tutorial]:
    """All tutorials, in their order."""
    folder = _PACKAGED if _PACKAGED.is_dir() else _SOURCE
    return [_tutorial(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def tutorial(number: str) -> Tutorial:
    """The tutorial of that number ("08", or "8"), or of that name ("08_repetition").

    Raises `TutorialError` for another.
    """
    known = tutorials()
    wanted = f"{int(number):02}" if number.isdecimal() else number
    for one in known:
        if wanted in (one.number, one.path.stem):
            return one
    listed = ", ".join(one.path.stem for one in known) or "none"
    raise TutorialError(f"there is no tutorial {number!r}; there are {listed}")


def is_parameters(cell: Any) -> bool:
    """Whether a cell holds what a tutorial may be asked."""
    return _TAG in cell.metadata.get("tags", [])


def _tutorial(path: Path) -> Tutorial:
    notebook = _read(path)
    (asked,) = [cell for cell in notebook.cells if is_parameters(cell)]
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    return Tutorial(path.stem[:2], path, title, _defaults(asked.source))


def _defaults(source: str) -> dict[str, Any]:
    """What a cell of plain assignments assigns.

    >>> _defaults("clips = 40  # how many\\nmanifest = None")
    {'clips': 40, 'manifest': None}
    """
    return {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in ast.parse(source).body
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    }


def _read(path: Path) -> Any:
    try:
        import nbformat
    except ImportError as error:
        raise TutorialError(
            "tutorials need nbformat and IPython: pip install 'hooked_asr[tutorials]'"
        ) from error
    return nbformat.read(path, as_version=4)
