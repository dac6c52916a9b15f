"""What can happen at a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hooked_asr.interventions.site import Activation, InterventionError, Region

Source = Mapping[str, Tensor] | Tensor


@dataclass(frozen=True, eq=False)
class Action:
    """What happens at a site: `value` gives what the site holds afterwards."""

    kind: ClassVar[str]

    @property
    def by_position(self) -> bool:
        """Whether what it does at a position depends on that position alone."""
        return True

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
        raise TypeError(f"{type(self).__name__} says nothing of what happens at a site")


@dataclass(frozen=True, eq=False)
class Zero(Action):
    """Nothing is left."""

    kind = "zero"

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
        return torch.zeros_like(x[region.local])


@dataclass(frozen=True, eq=False)
class Replace(Action):
    """`(1 - alpha) * original + alpha * source`; the source itself at `alpha=1`."""

    kind = "replace"
    source: Source
    alpha: float = 1.0

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
        source, here = _fetch(self.source, hook, x), x[region.local]
        length = source.shape[hook.spec.position_axis]
        if length <= region.last:
            raise InterventionError(
                f"the source for {hook.name} has {length} positions; "
                f"position {region.last} is asked for"
            )
        new = _fit("source", source[region.absolute], here, hook)
        # Where the two are equal nothing is to be done; masked scores, both -inf, would become NaN.
        return new if self.alpha == 1.0 else here.where(here == new, here.lerp(new, self.alpha))


@dataclass(frozen=True, eq=False)
class Mean(Action):
    """The mean over positions: of each clip's own running forward, or over all of a source.

    A step of cached decoding sees no position but its own, so there it takes a source.
    """

    kind = "mean"
    source: Source | None = None

    @property
    def by_position(self) -> bool:
        return self.source is not None

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
        axis = hook.spec.position_axis
        if self.source is None:
            if hook.positions.start > 0:
                raise InterventionError(
                    f"one step of decoding sees too few positions of {hook.name} for their mean: "
                    "give it a source, as in mean(site, cache)"
                )
            mean = x.mean(axis, keepdim=True)
        else:
            mean = _fetch(self.source, hook, x).mean((0, axis), keepdim=True)
        return _fit("mean", mean, x, hook)[region.local]


@dataclass(frozen=True, eq=False)
class Add(Action):
    """`original + scale * direction`; the direction is `[d]`, or `[head d]` for several heads."""

    kind = "add"
    direction: Tensor
    scale: float = 1.0

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
        here = x[region.local]
        direction = _fit("direction", self.direction.to(x.device, x.dtype), here, hook)
        return here + self.scale * direction


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

    def value(self, x: Activation, hook: Any, region: Region) -> Activation:
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


ACTIONS = {action.kind: action for action in (Zero, Replace, Mean, Add, Custom)}


def _fetch(source: Source, hook: Any, x: Activation) -> Activation:
    """The source's activation for this hook, where and as what `x` is."""
    if isinstance(source, Mapping):
        if hook.name not in source:
            raise InterventionError(
                f"the source has no {hook.name!r}: cache it in the reference run (names_filter)"
            )
        source = source[hook.name]
    if hook.spec.axes[-1] == "key" and hook.spec.clock == "pos":
        source = source[..., : x.shape[-1]]  # a decoding step has the keys so far, not all of them
    inner = set(range(1, x.ndim)) - {hook.spec.position_axis}
    if source.ndim != x.ndim or any(source.shape[i] != x.shape[i] for i in inner):
        raise InterventionError(
            f"a source of shape {list(source.shape)} does not fit {list(x.shape)} at {hook.name} "
            f"({' '.join(hook.spec.axes)}); batch and positions alone may differ"
        )
    return source.to(x.device, x.dtype)


def _fit(what: str, new: Tensor, here: Activation, hook: Any) -> Activation:
    try:
        return new.expand_as(here)
    except RuntimeError:
        raise InterventionError(
            f"a {what} of shape {list(new.shape)} does not fit {list(here.shape)} at {hook.name} "
            f"({' '.join(hook.spec.axes)})"
        ) from None
