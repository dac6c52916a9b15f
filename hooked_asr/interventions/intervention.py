"""A site and an action, together a hook."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hooked_asr.interventions.actions import Action, Add, Custom, Mean, Replace, Source, Zero
from hooked_asr.interventions.site import Activation, Site, region


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """A site and an action. It unpacks as `(hook name, function)`, as every hook does."""

    site: Site
    action: Action

    @property
    def acts_at(self) -> tuple[int, ...] | None:
        """Where it must have acted by the end of a run, or something went wrong."""
        return self.site.positions

    def __iter__(self) -> Iterator[Any]:
        return iter((self.site.hook, self))

    def __call__(self, x: Activation, hook: Any) -> Activation | None:
        where = region(self.site, hook, x)
        if where is None:
            return None
        edited = x.clone()
        edited[where.local] = self.action.value(x, hook, where)
        return edited

    def __str__(self) -> str:
        return f"{self.action.kind} {self.site}"

    def __repr__(self) -> str:
        return f"<{self}>"  # the tensors would drown it

    def at(self, site: Site | str) -> Intervention:
        """The same action elsewhere."""
        return dataclasses.replace(self, site=_site(site))


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


def custom(site: Site | str, fn: Callable[..., Tensor | None]) -> Intervention:
    """Let a function decide: `fn(activation at the site, hook=hook_point)`."""
    return Intervention(_site(site), Custom(fn))
