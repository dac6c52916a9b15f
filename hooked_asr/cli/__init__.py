"""The command line: one file for each sub-command, and no logic of its own."""

from __future__ import annotations

import sys
import warnings

import typer
from rich.console import Console
from rich.text import Text

from hooked_asr.cli.demo import demo
from hooked_asr.cli.hooks import hooks
from hooked_asr.cli.nano import nano
from hooked_asr.cli.patch import patch
from hooked_asr.cli.transcribe import transcribe
from hooked_asr.cli.validate import validate
from hooked_asr.errors import HookedASRError

app = typer.Typer(
    help="See inside speech recognisers, and change what happens there.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, patch, transcribe, hooks, validate):
    app.command()(command)
app.add_typer(nano, name="nano")


def main() -> None:
    """Run the command line; what was asked wrongly is answered in words, not with a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: _say("warning", "yellow", message)
        try:
            app()
        except (HookedASRError, OSError) as error:
            _say("error", "bold red", error)
            sys.exit(2)


def _say(kind: str, style: str, message: object) -> None:
    # Not as markup: a message may have a path or a shape in square brackets.
    text = Text.assemble((f"{kind}:", style), f" {message}")
    Console(stderr=True).print(text, soft_wrap=True)
