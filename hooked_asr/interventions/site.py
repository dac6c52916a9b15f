"""A place in a model: a hook, and which of its heads or neurons, positions or seconds."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.interventions.span import Span

Activation = Float[Tensor, "..."]
Numbers = SupportsIndex | Iterable[SupportsIndex] | None
Seconds = tuple[float, float]

# The short names of a block's parts, and the hook that holds what each writes to the stream.
PARTS = {
    "attn": "hook_attn_out",
    "cross_attn": "hook_cross_attn_out",
    "mlp": "hook_mlp_out",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_mid_cross": "hook_resid_mid_cross",
    "resid_post": "hook_resid_post",
}

# The hooks that have heads.
_BY_HEAD = tuple(
    f".hook_{leaf}"
    for leaf in (
        *("q_input", "k_input", "v_input", "q", "k", "v", "rot_q", "rot_k"),
        *("attn_scores", "pattern", "z", "result"),
    )
)


class InterventionError(HookedASRError):
    """An intervention that the activation it meets has no place for."""


@dataclass(frozen=True, init=False)
class Site:
    """A place in the model: a hook (a name or a glob), and which of its heads and positions.

    Where a hook has no heads, `neurons` says which of its last axis: those of an MLP
    (`mlp.hook_post`), or the dimensions of a stream.

    Positions are absolute, from 0: the same in a full forward and in cached decoding. One number
    may stand for itself; `slice(5, None)` for all from there on; None for all there are. Where a
    hook's positions hear the sound (frames, encoder positions, keys and values of cross-attention),
    `seconds=(0.5, 1.2)` means those that overlap that part of the window.

    >>> Site.parse("decoder.3.cross_attn.5")
    Site(hook='decoder.3.cross_attn.hook_z', heads=(5,), positions=None, seconds=None, neurons=None)
    >>> str(Site("encoder.2.hook_mlp_out", positions=range(3, 6)))
    'encoder.2.mlp@3-5'
    """

    hook: str
    heads: tuple[int, ...] | None
    positions: tuple[int, ...] | Span | None
    seconds: Seconds | None
    neurons: tuple[int, ...] | None

    def __init__(
        self,
        hook: str,
        heads: Numbers = None,
        positions: Numbers | slice | Span = None,
        seconds: Iterable[SupportsFloat] | None = None,
        neurons: Numbers = None,
    ) -> None:
        if heads is not None and neurons is not None:
            raise InterventionError(f"{hook}: say which heads or which neurons, not both")
        if positions is not None and seconds is not None:
            raise InterventionError(f"{hook}: say which positions or which seconds, not both")
        object.__setattr__(self, "hook", hook)
        object.__setattr__(self, "heads", as_numbers("heads", heads))
        object.__setattr__(self, "positions", _as_positions(positions))
        object.__setattr__(self, "seconds", None if seconds is None else _as_seconds(seconds))
        object.__setattr__(self, "neurons", as_numbers("neurons", neurons))

    @classmethod
    def parse(cls, text: str) -> Site:
        """A site from its short form, as it stands in tables and on the command line.

        `decoder.3.cross_attn.5` (a head, or several: `.5,6`), `decoder.3.mlp.17` (a neuron),
        `decoder.3.cross_attn` / `.attn` / `.mlp` (what it writes), `decoder.3.resid_post` (the
        stream), or any hook's full name, with numbers of its heads or neurons behind it; `@7`,
        `@7-9`, `@2,5` or `@5-` (from 5 on) behind it for positions, `@0.5s-1.2s` for seconds.
        """
        path, at, text_of_where = text.partition("@")
        where = _parse_where(text_of_where) if at else {}
        block, _, part = path.rpartition(".")
        if part[:1].isdigit():
            return cls(_numbered_hook(block), **{_counted(block): _parse_numbers(part)}, **where)
        return cls(f"{block}.{PARTS[part]}" if part in PARTS else path, None, **where)

    def __str__(self) -> str:
        block, _, leaf = self.hook.rpartition(".")
        numbers = self.heads or self.neurons
        if numbers is None:
            short = {hook: f"{block}.{part}" for part, hook in PARTS.items()}
            return short.get(leaf, self.hook) + self._where()
        place = block if _numbered_hook(block) == self.hook else self.hook
        return f"{place}.{format_numbers(numbers)}{self._where()}"

    def _where(self) -> str:
        if self.seconds is not None:
            start, stop = map(format_seconds, self.seconds)
            return f"@{start}s-{stop}s"
        if isinstance(self.positions, Span):
            return f"@{self.positions}"
        return "@" + format_numbers(self.positions) if self.positions else ""

    @property
    def least_positions(self) -> tuple[int, ...]:
        """Positions without which it cannot have acted as it was meant to."""
        if isinstance(self.positions, Span):
            return (self.positions.start,)
        return self.positions or ()


def _counted(path: str) -> str:
    """What the numbers behind a path count: heads of an attention and its hooks, or neurons."""
    return "heads" if path.endswith(("attn", *_BY_HEAD)) else "neurons"


def _numbered_hook(path: str) -> str:
    """The hook whose heads or neurons are meant by numbers behind a path."""
    for part, leaf in (("attn", "hook_z"), ("mlp", "hook_post")):
        if path.endswith(part):
            return f"{path}.{leaf}"
    return path


def as_numbers(name: str, value: Numbers) -> tuple[int, ...] | None:
    """One number or several as a tuple, checked to count from 0; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    try:
        numbers = tuple(map(operator.index, value if isinstance(value, Iterable) else [value]))
    except TypeError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise InterventionError(f"{name} are one or more numbers from 0 on; got {value}")
    return numbers


def format_numbers(numbers: tuple[int, ...]) -> str:
    """Numbers as `Site.parse` reads them: 7, 7-9 or 2,5."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and numbers == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, numbers))


def parse_positions(text: str) -> tuple[int, ...] | Span:
    """Positions out of 7, 7-9, 2,5 or 5- (from 5 on)."""
    if match := re.fullmatch(r"(\d+)-", text):
        return Span(int(match[1]))
    return _parse_numbers(text)


def _parse_where(text: str) -> dict[str, Any]:
    """What stands behind the @: positions, or seconds."""
    moment = r"(\d+(?:\.\d+)?)s"
    if match := re.fullmatch(f"{moment}-{moment}", text):
        return {"seconds": (float(match[1]), float(match[2]))}
    return {"positions": parse_positions(text)}


def _parse_numbers(text: str) -> tuple[int, ...]:
    numbers: tuple[int, ...] = ()
    if re.fullmatch(r"\d+(,\d+)*", text):
        numbers = tuple(map(int, text.split(",")))
    elif re.fullmatch(r"\d+-\d+", text):
        first, last = map(int, text.split("-"))
        numbers = tuple(range(first, last + 1))
    if not numbers:
        raise InterventionError(
            "numbers are written 7, 7-9 or 2,5 (positions also 5-, from 5 on, and seconds "
            f"0.5s-1.2s); got {text!r}"
        )
    return numbers


def _as_positions(value: Numbers | slice | Span) -> tuple[int, ...] | Span | None:
    if isinstance(value, Span):
        return value
    if not isinstance(value, slice):
        return as_numbers("positions", value)
    start = 0 if value.start is None else value.start
    numbers = (start,) if value.stop is None else range(start, value.stop)
    checked = as_numbers("positions", None if value.step not in (None, 1) else numbers)
    if checked is None:
        raise InterventionError(f"a slice of positions goes on one by one; got {value}")
    return Span(checked[0]) if value.stop is None else checked


def _as_seconds(value: Iterable[SupportsFloat]) -> Seconds:
    moments = tuple(map(float, value))
    if len(moments) != 2 or not 0 <= moments[0] < moments[1] < math.inf:
        raise InterventionError(
            f"seconds are from when to when, as in (0.5, 1.2), from 0 on; got {moments}"
        )
    return moments


def format_seconds(moment: float) -> str:
    return np.format_float_positional(moment, trim="-")  # never in powers of ten
