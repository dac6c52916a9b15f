"""A place in a model: a hook, and which of its heads and positions."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.errors import HookedASRError

Activation = Float[Tensor, "..."]
Numbers = SupportsIndex | Iterable[SupportsIndex] | None

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


class InterventionError(HookedASRError):
    """An intervention that the activation it meets has no place for."""


@dataclass(frozen=True, init=False)
class Site:
    """A place in the model: a hook (a name or a glob), and which of its heads and positions.

    Positions are absolute, from 0: the same in a full forward and in cached decoding. One number
    may stand for itself; None for all there are.

    >>> Site.parse("decoder.3.cross_attn.5")
    Site(hook='decoder.3.cross_attn.hook_z', heads=(5,), positions=None)
    >>> str(Site("encoder.2.hook_mlp_out", positions=range(3, 6)))
    'encoder.2.mlp@3-5'
    """

    hook: str
    heads: tuple[int, ...] | None
    positions: tuple[int, ...] | None

    def __init__(self, hook: str, heads: Numbers = None, positions: Numbers = None) -> None:
        object.__setattr__(self, "hook", hook)
        object.__setattr__(self, "heads", as_numbers("heads", heads))
        object.__setattr__(self, "positions", as_numbers("positions", positions))

    @classmethod
    def parse(cls, text: str) -> Site:
        """A site from its short form, as it stands in tables and on the command line.

        `decoder.3.cross_attn.5` (a head, or several: `.5,6`), `decoder.3.cross_attn` / `.attn` /
        `.mlp` (what it writes), `decoder.3.resid_post` (the stream), or any hook's full name; `@7`,
        `@7-9` or `@2,5` behind it for positions.
        """
        path, at, where = text.partition("@")
        positions = _parse_numbers(where) if at else None
        block, _, part = path.rpartition(".")
        if part[:1].isdigit():
            hook = f"{block}.hook_z" if block.endswith("attn") else block
            return cls(hook, _parse_numbers(part), positions)
        return cls(f"{block}.{PARTS[part]}" if part in PARTS else path, None, positions)

    def __str__(self) -> str:
        block, _, leaf = self.hook.rpartition(".")
        short = {hook: f"{block}.{part}" for part, hook in PARTS.items()}
        if self.heads:
            short = {"hook_z": block} if block.endswith("attn") else {}
        heads = "." + format_numbers(self.heads) if self.heads else ""
        positions = "@" + format_numbers(self.positions) if self.positions else ""
        return short.get(leaf, self.hook) + heads + positions


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


def _parse_numbers(text: str) -> tuple[int, ...]:
    numbers: tuple[int, ...] = ()
    if re.fullmatch(r"\d+(,\d+)*", text):
        numbers = tuple(map(int, text.split(",")))
    elif re.fullmatch(r"\d+-\d+", text):
        first, last = map(int, text.split("-"))
        numbers = tuple(range(first, last + 1))
    if not numbers:
        raise InterventionError(f"numbers are written 7, 7-9 or 2,5; got {text!r}")
    return numbers


@dataclass(frozen=True)
class Region:
    """A site in one tensor: indices into the activation, and into a source that begins at 0.

    `last` is the last absolute position in it.
    """

    local: tuple[Any, ...]
    absolute: tuple[Any, ...]
    last: int


def region(site: Site, hook: Any, x: Activation) -> Region | None:
    """Where `site` lies in `x`; None where none of its positions is among those passing now."""
    passing = hook.positions
    heads = _checked_heads(site, hook, x)
    if site.positions is None:  # a source is read where the activation stands
        here: slice | list[int] = slice(None)
        there: slice | list[int] = slice(passing.start, passing.stop)
        last = passing.stop - 1
    else:
        there = [position for position in site.positions if position in passing]
        if not there:
            return None
        here = [position - passing.start for position in there]
        last = max(there)
    return Region(_index(hook, x.ndim, here, heads), _index(hook, x.ndim, there, heads), last)


def _checked_heads(site: Site, hook: Any, x: Activation) -> list[int] | None:
    if site.heads is None:
        return None
    axis = hook.spec.head_axis
    if axis is None:
        raise InterventionError(f"{hook.name} has no heads ({' '.join(hook.spec.axes)})")
    if max(site.heads) >= x.shape[axis]:
        raise InterventionError(
            f"{hook.name} has heads 0 to {x.shape[axis] - 1}; asked for {max(site.heads)}"
        )
    return list(site.heads)


def _index(
    hook: Any, ndim: int, positions: slice | list[int], heads: list[int] | None
) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * ndim
    index[hook.spec.position_axis] = positions
    if heads is not None:
        index[hook.spec.head_axis] = heads
        if isinstance(positions, list):
            # Two lists would be paired off; as a column and a row they span the rectangle. Heads
            # and positions are neighbouring axes everywhere, so the result's axes stay in order.
            first, second = sorted((hook.spec.head_axis, hook.spec.position_axis))
            index[first] = torch.tensor(index[first])[:, None]
            index[second] = torch.tensor(index[second])[None, :]
    return tuple(index)
