"""What a function does with its tensors, recorded once, and replayed as one straight line.

A step of decoding is a few hundred small operations, and much of its time goes by in between:
modules look up their parts, ask whether anybody listens, and call each other. A tape is the same
operations on the same arguments, one after another: the source of a Python function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from keyword import iskeyword
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

Tape = Callable[..., Tensor]


@dataclass(frozen=True)
class _Line:
    """One operation: its source, the names that it reads, and those that it gives its outcome.

    `acts`: it does something beside giving an outcome.
    """

    source: str
    reads: frozenset[str]
    outs: tuple[str, ...]
    acts: bool


class Recorder(TorchFunctionMode):
    """Writes down every torch function that is called while it is entered.

    >>> import torch
    >>> x = torch.ones(2)
    >>> with Recorder([x]) as recorder:
    ...     out = (x * 2 + 1).sum()
    >>> recorder.tape(out)(torch.zeros(2))
    tensor(2.)

    `inputs`: tensors and other objects that may be others when the tape is run. All else that is
    not a tensor (shapes, numbers, the outcome of a condition) stays as it is in this run. A tensor
    that neither is an input nor was made of one cannot be replayed: then there is no tape.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._inputs = [f"x{i}" for i in range(len(inputs))]
        self._names = {id(value): name for value, name in zip(inputs, self._inputs, strict=True)}
        self._kept = list(inputs)  # lest an id is given out again
        self._constants: dict[str, Any] = {}
        self._lines: list[_Line] = []
        self._listening = self._sound = True

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        acts = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if acts or _tensors(out):
            self._note(func, args, kwargs or {}, out, acts)
        return out

    @contextmanager
    def as_one(self, owner: Any, method: str) -> Iterator[None]:
        """For the length of a block, a method's call is one line, and nothing that it does."""
        run, own = getattr(owner, method), getattr(type(owner), method)

        def noted(*args: Any, **kwargs: Any) -> Any:
            before, self._listening = self._listening, False
            try:
                out = run(*args, **kwargs)
            finally:
                self._listening = before
            self._note(own, (owner, *args), kwargs, out, acts=True)
            return out

        with _standing_in(owner, method, noted):
            yield

    @contextmanager
    def spoiled_by(self, owner: Any, method: str) -> Iterator[None]:
        """For the length of a block, a method's call means that there is no tape."""
        run = getattr(owner, method)

        def spoil(*args: Any, **kwargs: Any) -> Any:
            self._sound = False
            return run(*args, **kwargs)

        with _standing_in(owner, method, spoil):
            yield

    def tape(self, out: Tensor) -> Tape | None:
        """A function of the inputs that gives what was `out` in this run."""
        if not self._sound or id(out) not in self._names:
            return None
        outcome = self._names[id(out)]
        needed, lines = {outcome, *self._inputs}, [f"return {outcome}"]
        for line in reversed(self._lines):
            if line.acts or needed.intersection(line.outs):
                last = sorted({*line.reads, *line.outs} - needed)  # nothing behind it reads these
                lines.append(line.source + (f"; del {', '.join(last)}" if last else ""))
                needed.update(line.reads, line.outs)
        return self._compiled(lines[::-1])

    def _compiled(self, lines: list[str]) -> Tape:
        head = f"def replay({', '.join(self._inputs)}):"
        names = dict(self._constants)
        exec("\n    ".join([head, *lines]), names)
        replay: Tape = names["replay"]
        return replay

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, acts: bool) -> None:
        if not (self._listening and self._sound):
            return
        reads: set[str] = set()
        given = [self._written(arg, reads) for arg in args]
        given += [f"{name}={self._written(arg, reads)}" for name, arg in kwargs.items()]
        call = f"{self._constant(func)}({', '.join(given)})"
        outs = tuple(map(self._named, _tensors(out)))
        if outs:
            to = outs[0] if isinstance(out, Tensor) else f"[{', '.join(outs)}]"
            call = f"{to} = {call}"
        self._lines.append(_Line(call, frozenset(reads), outs, acts))

    def _named(self, tensor: Tensor) -> str:
        name = self._names[id(tensor)] = f"t{len(self._kept)}"
        self._kept.append(tensor)
        return name

    def _written(self, value: Any, reads: set[str]) -> str:
        """A value as source; adds the names in it to `reads`."""
        if id(value) in self._names:
            reads.add(self._names[id(value)])
            return self._names[id(value)]
        if type(value) in (bool, int, str, type(None)):
            return repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)
        if isinstance(value, slice):
            parts = (self._written(v, reads) for v in (value.start, value.stop, value.step))
            return f"slice({', '.join(parts)})"
        if isinstance(value, tuple | list):
            inner = "".join(f"{self._written(one, reads)}, " for one in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, Tensor):
            self._sound = False
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        own = getattr(value, "__name__", type(value).__name__)
        own = re.sub(r"\W", "_", own).strip("_")
        tries = count(2)
        name = f"{own}_" if iskeyword(own) or own == "slice" else own
        while self._constants.setdefault(name, value) is not value:
            name = f"{own}_{next(tries)}"
        return name


def _tensors(out: Any) -> tuple[Tensor, ...]:
    """The tensors that an operation gave: one, or all of a tuple."""
    if isinstance(out, Tensor):
        return (out,)
    many = isinstance(out, tuple | list) and all(isinstance(one, Tensor) for one in out)
    return tuple(out) if many else ()


@contextmanager
def _standing_in(owner: Any, method: str, fn: Callable[..., Any]) -> Iterator[None]:
    """Put a function in an object's method's place for the length of a block."""
    before = owner.__dict__.get(method)
    owner.__dict__[method] = fn
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[method]
        else:
            owner.__dict__[method] = before
