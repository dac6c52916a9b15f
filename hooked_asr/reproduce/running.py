"""Which command a notebook runs by, so that its results can say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COMMAND: ContextVar[str] = ContextVar("command", default="a notebook")


def command() -> str:
    """The command line that runs the notebook; "a notebook" where it is run by hand."""
    return _COMMAND.get()


@contextmanager
def run_by(line: str) -> Iterator[None]:
    """While the block runs, results say that this was the command."""
    token = _COMMAND.set(line)
    try:
        yield
    finally:
        _COMMAND.reset(token)
