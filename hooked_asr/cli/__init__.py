"""The command line: one file for each sub-command, and no logic of its own."""

from __future__ import annotations

import sys
import warnings

import typer

from hooked_asr.cli.data import data
from hooked_asr.cli.demo import demo
from hooked_asr.cli.hooks import hooks
from hooked_asr.cli.lens import lens
from hooked_asr.cli.messages import say_error, say_warning
from hooked_asr.cli.nano import nano
from hooked_asr.cli.patch import patch
from hooked_asr.cli.probe import probe
from hooked_asr.cli.repetition import repetition
from hooked_asr.cli.reproduce import reproduce
from hooked_asr.cli.results import results
from hooked_asr.cli.sae import sae
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
for command in (demo, patch, probe, repetition, transcribe, hooks, validate, reproduce, results):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(lens, name="lens")
app.add_typer(nano, name="nano")
app.add_typer(sae, name="sae")


def main() -> None:
    """Run the command line; what was asked wrongly is answered in words, not with a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: say_warning(message)
        try:
            app()
        except (HookedASRError, OSError) as error:
            say_error(error)
            sys.exit(2)
