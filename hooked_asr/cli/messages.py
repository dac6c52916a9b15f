"""What is said beside the results: errors and warnings, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say_error(error: object) -> None:
    """Say what went wrong, in one line."""
    _say("error", "bold red", error)


def say_warning(warning: object) -> None:
    """Say what may not be as it was meant, in one line."""
    _say("warning", "yellow", warning)


def _say(kind: str, style: str, message: object) -> None:
    # Not as markup: a message may have a path or a shape in square brackets.
    text = Text.assemble((f"{kind}:", style), f" {message}")
    Console(stderr=True).print(text, soft_wrap=True)
