"""A tutorial run from the first cell to the last, with what it shows written into it."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import altair as alt

from hooked_asr.files import written_aside
from hooked_asr.reproduce.errors import TutorialError
from hooked_asr.reproduce.notebooks import Tutorial, is_parameters, tutorial
from hooked_asr.reproduce.running import run_by

# Parameters that have an option of their own.
_OPTIONS = {
    "model_name": "--model",
    "manifest": "--manifest",
    "device": "--device",
    "seed": "--seed",
}
_SCALE = 1.5  # of figures: pixels for each of theirs


def reproduce(
    number: str,
    *,
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
    **parameters: Any,
) -> dict[str, Any]:
    """Run a tutorial, and give all that its cells named.

        reproduce("08", model_name="openai/whisper-large-v3", manifest="clips.csv", out="run")

    In `out` (by default what the notebook says) are the notebook with its outputs, its figures as
    PNG, the table of results as `results.json`, and what a second run goes on from: one that was
    interrupted is run again by the same call.

    - `parameters`: what its first code cell assigns, by name; see `Tutorial.parameters`.
    - `say`: what is done with the text that cells show, and headings; bars go to stderr.

    Raises `TutorialError` for another number, a parameter that it has not, or missing packages; and
    what its cells raise.
    """
    chosen = tutorial(number)
    asked = parameters if out is None else {**parameters, "out": os.fspath(out)}
    _check(chosen, asked)
    folder = Path({**chosen.parameters, **asked}["out"])
    folder.mkdir(parents=True, exist_ok=True)
    notebook = chosen.read()
    with run_by(command_line(chosen, asked)), _shell() as shell:
        try:
            _run_cells(shell, notebook.cells, asked, folder, say)
        finally:
            _write(notebook, folder / chosen.path.name)
        hidden = shell.user_ns_hidden
        return {name: one for name, one in shell.user_ns.items() if name not in hidden}


def command_line(chosen: Tutorial, parameters: Mapping[str, Any]) -> str:
    """The command that asks for these parameters, but for where results go."""
    given = {
        name: value
        for name, value in parameters.items()
        if name != "out" and value != chosen.parameters[name]
    }
    words = ["hooked-asr", "reproduce", chosen.number]
    for name, value in given.items():
        if name in _OPTIONS:
            words += [_OPTIONS[name], str(value)]
        else:
            words += ["--set", f"{name}={value!r}"]
    return shlex.join(words)


def _check(chosen: Tutorial, asked: Mapping[str, Any]) -> None:
    for name in asked:
        if name not in chosen.parameters:
            raise TutorialError(
                f"tutorial {chosen.number} has no parameter {name!r}; it has "
                + ", ".join(f"{known} ({value!r})" for known, value in chosen.parameters.items())
            )


# --- Cells ----------------------------------------------------------------------------------------


def _run_cells(
    shell: Any, cells: list[Any], asked: Mapping[str, Any], folder: Path, say: Callable[[str], None]
) -> None:
    count = 0
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            say("\n" + cell.source.partition("\n")[0])
        if cell.cell_type != "code":
            continue
        if is_parameters(cell):
            cell.source = _with_values(cell.source, asked)
        count += 1
        cell.execution_count = count
        cell.outputs = _run_cell(shell, cell.source)
        _tell(cell.outputs, folder, place, say)


def _with_values(source: str, asked: Mapping[str, Any]) -> str:
    """The cell of parameters, with other values in their lines."""
    lines = []
    for line in source.splitlines():
        name, _, rest = line.partition("=")
        if name.strip() in asked:
            comment = rest.partition("  #")[2]
            line = f"{name}= {asked[name.strip()]!r}" + (f"  #{comment}" if comment else "")
        lines.append(line)
    return "\n".join(lines)


def _run_cell(shell: Any, source: str) -> list[Any]:
    """What a cell prints and shows; bars go on to stderr."""
    from IPython.core.displayhook import CapturingDisplayHook
    from nbformat.v4 import new_output

    shell.display_pub.outputs = []
    shown = shell.display_pub.outputs  # what traitlets keeps of it
    shell.display_trap.hook = CapturingDisplayHook(shell, shown)
    with contextlib.redirect_stdout(StringIO()) as printed:
        done = shell.run_cell(source, store_history=False)
    error = done.error_before_exec or done.error_in_exec
    if error is not None:
        raise error
    text = printed.getvalue()
    texts = [new_output("stream", name="stdout", text=text)] if text else []
    rich = [new_output("display_data", data=_as_json(one["data"]), metadata={}) for one in shown]
    return texts + rich


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a notebook holds of each format: pictures as base64, and no text beside them."""
    if "image/png" in data:
        picture = data["image/png"]
        data = {"image/png": picture}
    return {
        kind: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for kind, value in data.items()
    }


def _tell(outputs: list[Any], folder: Path, place: int, say: Callable[[str], None]) -> None:
    """What a cell shows, for a reader of text; pictures go to the folder."""
    for i, output in enumerate(outputs):
        data = output.get("data", {})
        if output.output_type == "stream":
            say(output.text.rstrip("\n"))
        elif "image/png" in data:
            path = folder / f"figure-{place:02}{'-' + str(i) if i else ''}.png"
            with written_aside(path) as aside:
                aside.write_bytes(base64.b64decode(data["image/png"]))
            say(f"figure: {path}")
        else:
            say(str(data.get("text/plain", "")))


@contextlib.contextmanager
def _shell() -> Iterator[Any]:
    """IPython, leaving nothing behind; charts are shown as pictures."""
    try:
        from IPython.core.displaypub import CapturingDisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config
    except ImportError as error:
        raise TutorialError(
            "tutorials need IPython: pip install 'hooked_asr[tutorials]'"
        ) from error
    config = Config()
    config.HistoryManager.enabled = False
    with TemporaryDirectory() as home, alt.renderers.enable("png", scale_factor=_SCALE):
        InteractiveShell.clear_instance()
        shell: Any = InteractiveShell.instance(config=config, ipython_dir=home)
        shell.display_pub = CapturingDisplayPublisher()
        shell.showtraceback = shell.showsyntaxerror = lambda *args, **options: None
        try:
            yield shell
        finally:
            InteractiveShell.clear_instance()


def _write(notebook: Any, path: Path) -> None:
    import nbformat

    with written_aside(path) as aside:
        nbformat.write(notebook, aside)
