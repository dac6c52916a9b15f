"""`hooked-asr reproduce`: a tutorial from the first cell to the last."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hooked_asr.cli.options import OptionError, check_device
from hooked_asr.cli.tables import new_table, show
from hooked_asr.reproduce import reproduce as run_tutorial
from hooked_asr.reproduce import tutorial, tutorials


def reproduce(
    number: Annotated[
        str | None,
        typer.Argument(help="Which tutorial, as in 08; without one they are listed."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A checkpoint: a folder, a hub id, or whisper-nano.",
            show_default="whisper-nano",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Recordings of yours (CSV or JSON lines); the tutorial names the columns.",
            show_default="made by the tutorial",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the notebook, figures and results.json.",
            show_default="reproduced/NUMBER",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, …", show_default="cpu")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of all that is drawn.", show_default="0")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other of the tutorial's parameters, as in clips=40."),
    ] = None,
) -> None:
    """Run a tutorial: its figures, its table beside the paper's numbers, its notebook filled in.

    What it has computed stays in --out: run again, it goes on where it was.
    """
    if number is None:
        _list()
        return
    chosen = tutorial(number)
    given: dict[str, Any] = {
        "model_name": model,
        "manifest": manifest and str(manifest),
        "out": out and str(out),
        "device": device,
        "seed": seed,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if device is not None:
        check_device(device)
    for one in assign or ():
        name, value = _assigned(one)
        asked[name] = value
    console = Console(soft_wrap=True, highlight=False, markup=False)
    run_tutorial(number, say=console.print, **asked)
    folder = Path(asked.get("out", chosen.parameters["out"]))
    console.print(f"\nwrote {folder / chosen.path.name}, results.json and figures beside it")


def _list() -> None:
    table = new_table("tutorial", "title", "parameters")
    for one in tutorials():
        table.add_row(one.path.stem, one.title, ", ".join(one.parameters))
    show(table)


def _assigned(said: str) -> tuple[str, Any]:
    """The name and the value of "clips=40": a Python literal, or else text."""
    name, equals, value = said.partition("=")
    if not equals or not name.strip():
        raise OptionError(f"--set takes NAME=VALUE, as in clips=40; got {said!r}")
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value
