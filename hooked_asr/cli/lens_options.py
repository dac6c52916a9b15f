"""What the sub-commands of `hooked-asr lens` share: options, runs, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hooked_asr.cli.options import asked
from hooked_asr.lenses import ForcedRun, forced_run
from hooked_asr.models.recogniser import Recogniser

Audio = Annotated[Path, typer.Argument(help="A recording of up to 30 s.", show_default=False)]
Text = Annotated[
    str | None,
    typer.Option(help="The transcript to force on the model; its own if not given."),
]
At = Annotated[
    list[str] | None,
    typer.Option(
        help="Which stream of each layer: resid_pre, resid_mid, resid_mid_cross (Whisper) or "
        "resid_post; may be given again.",
        show_default="resid_post",
    ),
]
Top = Annotated[int, typer.Option(min=1, help="How many likeliest tokens to keep of each cell.")]
Ahead = Annotated[
    int, typer.Option(min=0, help="How many of the tokens that follow to look for in each cell.")
]
Out = Annotated[Path, typer.Option(help="Folder for numbers (JSON, CSV) and figures (HTML, PNG).")]

OUT = Path("lenses")
SUFFIXES = (".json", ".csv", ".html", ".png")


def run_of(
    model: Recogniser,
    audio: Path,
    text: str | None,
    language: str | None,
    prompt: str | None,
) -> ForcedRun:
    """The run on a recording as the options ask for it; what is forced on it is said."""
    asks: dict[str, Any] = asked(model, language=language, prompt=prompt)
    run = forced_run(model, audio, text, **asks)
    say(f"text: {run.text}")
    return run


def save_all(result: Any, stem: Path) -> None:
    """Write a result in every form, and say where."""
    for suffix in SUFFIXES:
        result.save(stem.with_name(stem.name + suffix))
    say(f"wrote {stem}.*")


def say(line: str) -> None:
    """A line as it is, however long."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
