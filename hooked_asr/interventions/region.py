"""Where a site lies in the activation that is passing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr import timing
from hooked_asr.interventions.site import (
    Activation,
    InterventionError,
    Seconds,
    Site,
    format_seconds,
)
from hooked_asr.interventions.span import Span


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
    units = _units(site, hook, x)
    there = _passing(site, hook)
    if there is None:
        return None
    start = hook.positions.start
    if isinstance(there, slice):
        here: slice | list[int] = slice(there.start - start, there.stop - start)
        last = there.stop - 1
    else:
        here, last = [position - start for position in there], max(there)
    return Region(_index(hook, x.ndim, here, units), _index(hook, x.ndim, there, units), last)


def _passing(site: Site, hook: Any) -> slice | list[int] | None:
    """The absolute positions of `site` that pass now, if any do."""
    passing: range = hook.positions
    positions = site.positions if site.seconds is None else _heard(site.seconds, hook)
    if positions is None:
        return slice(passing.start, passing.stop)
    if isinstance(positions, Span):
        first = max(positions.start, passing.start)
        return slice(first, passing.stop) if first < passing.stop else None
    return [position for position in positions if position in passing] or None


def _heard(seconds: Seconds, hook: Any) -> range:
    """The positions of a hook that hear a part of the window."""
    clock, n_positions = hook.spec.clock, hook.positions.stop
    start, stop = map(format_seconds, seconds)
    if clock not in timing.FRAMES:
        raise InterventionError(
            f"{hook.name} counts tokens, which no clock tells the seconds of; asked for {start} to "
            f"{stop} s. Say which positions, as in Site(hook, positions=range(7, 10)); where the "
            "prompt holds the audio, model.audio_positions(inputs) tells which hear what"
        )
    positions = timing.hearing(*seconds, clock)
    if positions.stop > n_positions:
        window = timing.seconds(n_positions - 1, clock)[1]
        raise InterventionError(
            f"the window at {hook.name} is {window:g} s long; asked for {start} to {stop} s"
        )
    return positions


def _units(site: Site, hook: Any, x: Activation) -> tuple[int, list[int]] | None:
    """The axis and the numbers of the heads or neurons that are meant; None for all."""
    axes, axis = " ".join(hook.spec.axes), hook.spec.head_axis
    if site.heads is not None:
        if axis is None:
            raise InterventionError(f"{hook.name} has no heads ({axes})")
        return axis, _within("heads", site.heads, hook, x.shape[axis])
    if site.neurons is not None:
        if axis is not None:
            raise InterventionError(f"{hook.name} has heads ({axes}): say which, not neurons")
        return x.ndim - 1, _within("neurons", site.neurons, hook, x.shape[-1])
    return None


def _within(what: str, numbers: tuple[int, ...], hook: Any, size: int) -> list[int]:
    if max(numbers) >= size:
        raise InterventionError(f"{hook.name} has {what} 0 to {size - 1}; asked for {max(numbers)}")
    return list(numbers)


def _index(
    hook: Any, ndim: int, positions: slice | list[int], units: tuple[int, list[int]] | None
) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * ndim
    index[hook.spec.position_axis] = positions
    if units is not None:
        axis, numbers = units
        index[axis] = numbers
        if isinstance(positions, list):
            # Two lists would be paired off; as a column and a row they span the rectangle. Heads
            # (or neurons) and positions are neighbouring axes everywhere, so the result's axes stay
            # in order.
            first, second = sorted((axis, hook.spec.position_axis))
            index[first] = torch.tensor(index[first])[:, None]
            index[second] = torch.tensor(index[second])[None, :]
    return tuple(index)
