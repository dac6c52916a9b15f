"""What can happen at a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hooked_asr.generation.lockstep import Lockstep
from hooked_asr.interventions.region import Region
from hooked_asr.interventions.site import Activation, InterventionError

Source = Mapping[str, Tensor] | Tensor | Lockstep


@dataclass(frozen=True, eq=False)
class Action:
    """What happens at a site: `value` gives what the site holds afterwards, None for no change."""

    kind: ClassVar[str]

    @property
    def by_position(self) -> bool:
        """Whether what it does at a position depends on that position alone."""
        return True

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        raise TypeError(f"{type(self).__name__} says nothing of what happens at a site")


@dataclass(frozen=True, eq=False)
class Zero(Action):
    """Nothing is left."""

    kind = "zero"

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        return torch.zeros_like(x[region.local])


@dataclass(frozen=True, eq=False)
class Replace(Action):
    """`(1 - alpha) * original + alpha * source`; the source itself at `alpha=1`.

    At `alpha=0` nothing happens, to the last bit: not even the order of operations is another.
    """

    kind = "replace"
    source: Source
    alpha: float = 1.0

    @property
    def by_position(self) -> bool:
        return not isinstance(self.source, Lockstep)

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        here = x[region.local]
        new = _fit("source", _read(self.source, hook, x, region), here, hook)
        if self.alpha in (0.0, 1.0):
            return new if self.alpha else None
        # Where the two are equal nothing is to be done; masked scores, both -inf, would become NaN.
        return here.where(here == new, here.lerp(new, self.alpha))


@dataclass(frozen=True, eq=False)
class Mean(Action):
    """The mean over positions: of each clip's own running forward, or over all of a source.

    A step of cached decoding sees no position but its own, so there it takes a source. That of a
    `Lockstep` is the mean over all that each row's own reference has passed so far.
    """

    kind = "mean"
    source: Source | None = None

    @property
    def by_position(self) -> bool:
        return not (self.source is None or isinstance(self.source, Lockstep))

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        return _fit("mean", self._mean(x, hook), x, hook)[region.local]

    def _mean(self, x: Activation, hook: Any) -> Activation:
        axis = hook.spec.position_axis
        if isinstance(self.source, Lockstep):
            _check_running(self.source, hook)
            return _like(x, hook, self.source.mean(hook.name))
        if self.source is not None:
            return _fetch(self.source, hook, x).mean((0, axis), keepdim=True)
        if hook.positions.start > 0:
            raise InterventionError(
                f"one step of decoding sees too few positions of {hook.name} for their mean: "
                "give it a source, as in mean(site, cache)"
            )
        return x.mean(axis, keepdim=True)


@dataclass(frozen=True, eq=False)
class Add(Action):
    """`original + scale * direction`; the direction is `[d]`, or `[head d]` for several heads.

    `d` are the neurons of the site, where it names some. At `scale=0` nothing happens, to the last
    bit.
    """

    kind = "add"
    direction: Tensor
    scale: float = 1.0

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        if self.scale == 0.0:  # not even the sign of a zero is another
            return None
        here = x[region.local]
        direction = _fit("direction", self.direction.to(x.device, x.dtype), here, hook)
        return here + self.scale * direction


@dataclass(frozen=True, eq=False)
class Clamp(Action):
    """`x + (target - x @ read) @ write`: the coordinates that `read` takes become `target`.

    - `read`: `[d k]`; `write`: `[k d]`; `target`: `[k]`. The coordinates are `target` exactly where
      `write @ read` is the identity, and nothing else changes then that `write` does not span.
    - `d` are the last axis of the site, the neurons alone where it names some; of several heads,
      each is treated alike. Half precision is computed in float32.
    """

    kind = "clamp"
    read: Tensor
    write: Tensor
    target: Tensor

    def apply(self, x: Activation) -> Activation:
        """What becomes of activations `[… d]`."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        read, write, target = (one.to(wide) for one in (self.read, self.write, self.target))
        moved: Tensor = wide + (target - wide @ read) @ write
        return moved.to(x.dtype)

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        here = x[region.local]
        if here.shape[-1] != len(self.read):
            raise InterventionError(
                f"a clamp of {len(self.read)} dimensions does not fit {list(here.shape)} at "
                f"{hook.name} ({' '.join(hook.spec.axes)})"
            )
        return self.apply(here)


@dataclass(frozen=True, eq=False)
class Custom(Action):
    """Whatever the function makes of the site: `fn(activation, hook=hook_point)`.

    As every hook function, it returns a tensor or edits in place and returns None.
    """

    kind = "custom"
    fn: Callable[..., Tensor | None]

    @property
    def by_position(self) -> bool:
        return False

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        here = x[region.local].clone()
        out = self.fn(here, hook=hook)
        if out is None:
            return here
        if not isinstance(out, Tensor) or out.shape != here.shape:
            made = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InterventionError(
                f"a custom function at {hook.name} made {made} of {list(here.shape)}; "
                "it returns a tensor of the same shape, or None"
            )
        return out


ACTIONS = {action.kind: action for action in (Zero, Replace, Mean, Add, Clamp, Custom)}


def _read(source: Source, hook: Any, x: Activation, region: Region) -> Activation:
    """What a source holds of a region of `x`."""
    found = _fetch(source, hook, x)
    if isinstance(source, Lockstep):  # it has just passed these very positions
        return found[region.local]
    length = found.shape[hook.spec.position_axis]
    if length <= region.last:
        raise InterventionError(
            f"the source for {hook.name} has {length} positions; "
            f"position {region.last} is asked for"
        )
    return found[region.absolute]


def _fetch(source: Source, hook: Any, x: Activation) -> Activation:
    """The source's activation for this hook, where and as what `x` is."""
    if isinstance(source, Lockstep):
        _check_running(source, hook)
        source = source.now(hook.name)
    elif isinstance(source, Mapping):
        if hook.name not in source:
            raise InterventionError(
                f"the source has no {hook.name!r}: cache it in the reference run (names_filter)"
            )
        source = source[hook.name]
    if hook.spec.axes[-1] == "key" and hook.spec.clock == "pos":
        source = source[..., : x.shape[-1]]  # a decoding step has the keys so far, not all of them
    return _like(x, hook, source)


def _like(x: Activation, hook: Any, source: Tensor) -> Activation:
    """A source that differs from `x` in batch and positions alone, where and as what `x` is."""
    inner = set(range(1, x.ndim)) - {hook.spec.position_axis}
    if source.ndim != x.ndim or any(source.shape[i] != x.shape[i] for i in inner):
        raise InterventionError(
            f"a source of shape {list(source.shape)} does not fit {list(x.shape)} at {hook.name} "
            f"({' '.join(hook.spec.axes)}); batch and positions alone may differ"
        )
    return source.to(x.device, x.dtype)


def _check_running(source: Lockstep, hook: Any) -> None:
    if not source.has_passed(hook.name):
        raise InterventionError(
            f"no reference has been at {hook.name} beside this run: a Lockstep is decoded beside "
            "model.generate(…, interventions=[…]) alone. For one run use a cache: "
            "_, cache = model.run_with_cache(reference, tokens); replace(site, cache)"
        )


def _fit(what: str, new: Tensor, here: Activation, hook: Any) -> Activation:
    try:
        return new.expand_as(here)
    except RuntimeError:
        raise InterventionError(
            f"a {what} of shape {list(new.shape)} does not fit {list(here.shape)} at {hook.name} "
            f"({' '.join(hook.spec.axes)})"
        ) from None
