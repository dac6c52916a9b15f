"""A site and an action, together a hook."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from hooked_asr.generation.lockstep import Lockstep
from hooked_asr.interventions.actions import (
    Action,
    Add,
    Clamp,
    Custom,
    Mean,
    Replace,
    Source,
    Zero,
)
from hooked_asr.interventions.region import region
from hooked_asr.interventions.site import Activation, InterventionError, Site, as_numbers
from hooked_asr.interventions.span import Span


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """A site, an action, and in which steps of a decoding: in all of them, if not said.

    It unpacks as `(hook name, function)`, as every hook does.
    """

    site: Site
    action: Action
    steps: Span | None = None

    @property
    def acts_at(self) -> tuple[int, ...]:
        """Positions at which it must have acted by the end of a run, or something went wrong."""
        return self.site.least_positions

    def acts_in(self, step: int) -> bool:
        """Whether it acts in this step of a decoding."""
        return self.steps is None or step in self.steps

    def unmet(self, positions: range, n_steps: int) -> str | None:
        """What it was to meet and did not, in a run of so many steps.

        `positions` are those that came by in the steps in which it acts.
        """
        if self.steps is not None and not positions:
            return f"step {self.steps.start}: this run had 0 to {n_steps - 1}"
        open_ended = isinstance(self.site.positions, Span)
        for position in self.acts_at:
            if position >= positions.stop or (position < positions.start and not open_ended):
                there = f"{positions.start} to {positions.stop - 1}"
                when = "" if self.steps is None else f" in steps {self.steps}"
                return f"position {position}: this run had {there}{when}"
        return None

    @property
    def by_position(self) -> bool:
        """Whether what it does at a position hangs on that position alone: not on the step, too."""
        return self.steps is None and self.action.by_position

    @property
    def lockstep(self) -> Lockstep | None:
        """The reference that must be decoded beside, for what comes in."""
        source = getattr(self.action, "source", None)
        return source if isinstance(source, Lockstep) else None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.site.hook, self))

    def __call__(self, x: Activation, hook: Any) -> Activation | None:
        if not self.acts_in(hook.clock.step):
            return None
        where = region(self.site, hook, x)
        if where is None:
            return None
        value = self.action.value(x, hook, where)
        if value is None:
            return None
        edited = x.clone()
        edited[where.local] = value
        return edited

    def __str__(self) -> str:
        when = "" if self.steps is None else f" in steps {self.steps}"
        return f"{self.action.kind} {self.site}{when}"

    def __repr__(self) -> str:
        return f"<{self}>"  # the tensors would drown it

    def at(self, site: Site | str) -> Intervention:
        """The same action elsewhere."""
        return dataclasses.replace(self, site=_site(site))

    def at_steps(self, start: SupportsIndex, stop: SupportsIndex | None = None) -> Intervention:
        """The same, acting only in steps `start` to `stop - 1` of a decoding, or to its end.

        Step 0 is the prompt's pass, and the encoder's; then there is one for each token that was
        said. Every window of a long recording is a decoding. A plain forward is all step 0.
        """
        return dataclasses.replace(self, steps=as_steps(start, stop))

    def in_prompt(self) -> Intervention:
        """The same, acting only in the encoder and while the prompt is read."""
        return self.at_steps(0, 1)


def as_steps(start: SupportsIndex, stop: SupportsIndex | None = None) -> Span:
    """Steps of a decoding, checked to count from 0 and to be at least one."""
    span = Span(*(as_numbers("steps", [start] if stop is None else [start, stop]) or ()))
    if span.empty:
        raise InterventionError(
            f"steps {span.start} to {span.stop} (without that one) are none: stop comes behind "
            "start; leave it out to act to the end"
        )
    return span


def _site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site


def zero(site: Site | str) -> Intervention:
    """Set a site to zero."""
    return Intervention(_site(site), Zero())


def replace(site: Site | str, source: Source) -> Intervention:
    """Put the source's activation in place of the model's own."""
    return Intervention(_site(site), Replace(source))


def interpolate(site: Site | str, source: Source, alpha: float) -> Intervention:
    """Move a site towards the source: not at all at `alpha=0`, all the way at 1."""
    return Intervention(_site(site), Replace(source, alpha))


def mean(site: Site | str, source: Source | None = None) -> Intervention:
    """Put the mean over positions in place of each: the clip's own, or a source's."""
    return Intervention(_site(site), Mean(source))


def add(site: Site | str, direction: Tensor, scale: float = 1.0) -> Intervention:
    """Add a direction."""
    return Intervention(_site(site), Add(direction, scale))


def clamp(site: Site | str, direction: Float[Tensor, " d"], value: float = 0.0) -> Intervention:
    """Set the coordinate along a direction (as a unit vector) to a value; 0 projects it out.

    Raises `InterventionError` for a direction of no length.
    """
    norm = float(direction.norm())
    if not 0 < norm < math.inf:
        raise InterventionError(f"a direction has a length, finite and not 0; got {norm}")
    unit = direction / norm
    return Intervention(_site(site), Clamp(unit[:, None], unit[None], unit.new_tensor([value])))


def custom(site: Site | str, fn: Callable[..., Tensor | None]) -> Intervention:
    """Let a function decide: `fn(activation at the site, hook=hook_point)`."""
    return Intervention(_site(site), Custom(fn))
