"""Attribution patching: what a sweep would give, estimated from gradients for all sites at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.interventions import Site
from hooked_asr.interventions.actions import Action
from hooked_asr.names import select
from hooked_asr.patching.atp_star import atp_star
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.gradients import (
    Activations,
    AttributionError,
    GradientRun,
    changes,
    measured,
)
from hooked_asr.patching.grid import AnySites, are_several, as_grids
from hooked_asr.patching.grid_sweep import token_texts
from hooked_asr.patching.operations import (
    Inputs,
    Run,
    as_action,
    as_inputs,
    check_operation,
)
from hooked_asr.patching.query_key_fix import beside
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.site_sums import SiteSums
from hooked_asr.patching.text_metrics import TextMetric

_METHODS = {"plain": "attribution", "integrated": "integrated attribution", "atp*": "AtP*"}


def attribution(
    model: Any,
    *,
    clean: Run,
    sites: AnySites,
    metric: AnyMetric,
    reference: Run | None = None,
    operation: str | None = None,
    alpha: float = 1.0,
    method: str = "plain",
    steps: int = 8,
    progress: bool = True,
) -> SweepResult | list[SweepResult]:
    """Estimate what `sweep` with the same arguments would give, for all sites at once.

    The change at a site is taken to be its step times the metric's gradient there: two forwards and
    one backward pass, however many sites there are. `compare` tells how well that does.

    - `sites`: as for a sweep; or several of them, estimated in the same passes, for a list of
      results.
    - `metric`: must be differentiable. The gradient is that of the clean run, so take one that is
      not flat there: `logit_diff`. Log-probabilities near 0 are flat, and `kl` from the clean run
      has no slope at all.
    - `method`: "plain"; or "integrated", the gradient's mean over `steps` points on the way from
      clean to patched, which is gone at one hook after another: `steps` forwards and backwards for
      each, and exact for a site that is the whole of its hook, as steps grow; or "atp*", where
      queries and keys are patched with the softmax computed anew, and the size (not the sign) is
      the mean over layers of that with the gradient through this layer dropped: a backward for each
      layer, and a forward for each set of positions of keys.
    - `operation`: "replace" (with `alpha`), "zero" or "mean", as for a sweep.

    Plain estimates hold for heads and single positions; where much is patched at once, as a whole
    stream or MLP, they may have the wrong sign, and "integrated" is right.

    In float16 small gradients vanish: load the model as float32 or bfloat16.

    Raises `AttributionError` for an unknown method or a metric that cannot be differentiated,
    `SweepError` where operation, reference and inputs do not fit together.

    Sources: "Attribution Patching: Activation Patching At Industrial Scale" (2023); for "atp*",
    "AtP*: An efficient and scalable method for localizing LLM behaviour to components" (2024),
    sections 3.1 and 3.2; for "integrated", "Axiomatic Attribution for Deep Networks" (2017).
    """
    operation = operation or ("zero" if reference is None else "replace")
    inputs = as_inputs(clean)
    others = None if reference is None else as_inputs(reference)
    _check(metric, method, steps)
    check_operation(operation, alpha, inputs, others)
    name = f"{_METHODS[method]} {operation}"
    grids = as_grids(sites, model.config, inputs["tokens"].shape[1], name)
    job = _Job.of(model, inputs, metric, [site for grid in grids for site in grid.sites])
    action, reference_value = _action(model, job.names, metric, others, operation, alpha)
    clean_value, estimates = job.estimate(action, method, steps, progress)
    parts = torch.split(estimates, [len(grid.sites) for grid in grids])
    results = [
        SweepResult(
            values=clean_value + part.reshape(grid.shape),
            axes=grid.axes,
            sites=[str(site) for site in grid.sites],
            clean=clean_value,
            reference=reference_value,
            metric=metric_name(metric),
            operation=name,
            alpha=alpha,
            model=model.name,
            tokens=token_texts(model, grid, inputs["tokens"]),
        )
        for grid, part in zip(grids, parts, strict=True)
    ]
    return results if are_several(sites) else results[0]


@dataclass(frozen=True)
class _Job:
    """One metric of one run, and the sites to be estimated in it."""

    model: Any
    inputs: Mapping[str, Any]
    metric: AnyMetric
    sites: Sequence[Site]
    names: Sequence[str]

    @classmethod
    def of(cls, model: Any, inputs: Inputs, metric: AnyMetric, sites: Sequence[Site]) -> _Job:
        """Where all sites are behind the encoder, that runs only once."""
        names = select(list(dict.fromkeys(site.hook for site in sites)), model.hook_table)
        table = list(model.hook_table)
        behind = table.index(names[0]) >= table.index("hook_decoder_embed")
        with torch.no_grad():
            return cls(model, model.encoded(inputs) if behind else inputs, metric, sites, names)

    def estimate(
        self, action: Action, method: str, steps: int, progress: bool
    ) -> tuple[float, Float[Tensor, " site"]]:
        """The clean metric, and how far the action at each site moves it."""
        extra = beside(self.names) if method == "atp*" else []
        run = GradientRun(self.model, self.inputs, self.metric, [*self.names, *extra])
        moves = changes(run, action, self.names)
        if method == "atp*":
            moved = atp_star(self.model, self.inputs, run, moves, self.sites, progress)
            return run.value, moved
        gradients = (
            run.gradients() if method == "plain" else self._means(run, moves, steps, progress)
        )
        sums = SiteSums(self.sites, self.model.hook_table, run.hooks)
        return run.value, sums.of(sums.products(moves, gradients))

    def _means(
        self, run: GradientRun, moves: Activations, steps: int, progress: bool
    ) -> Activations:
        """Mean gradients on the way of each hook by itself, all of it at once."""
        bar = tqdm(moves, desc="integrated attribution", unit="hook", disable=not progress)
        return {name: self._mean(name, run.activations[name], moves[name], steps) for name in bar}

    def _mean(self, name: str, clean: Tensor, move: Tensor, steps: int) -> Tensor:
        """By the midpoint rule."""
        total = torch.zeros_like(clean)
        for step in range(steps):
            total += self._gradient_at(name, clean + (step + 0.5) / steps * move)
        return total / steps

    def _gradient_at(self, name: str, x: Tensor) -> Tensor:
        hooks = [(name, lambda _, hook: x)]
        return GradientRun(self.model, self.inputs, self.metric, [name], hooks).gradients()[name]


def _check(metric: AnyMetric | TextMetric, method: str, steps: int) -> None:
    if isinstance(metric, TextMetric):
        raise AttributionError(f"a transcript has no gradient: {metric.name} is for `sweep` alone")
    if method not in _METHODS:
        raise AttributionError(f"methods are {', '.join(map(repr, _METHODS))}; got {method!r}")
    if steps < 1:
        raise AttributionError(f"the way has one step or more; got steps={steps}")


@torch.no_grad()
def _action(
    model: Any,
    names: Sequence[str],
    metric: AnyMetric,
    reference: Inputs | None,
    operation: str,
    alpha: float,
) -> tuple[Action, float]:
    """What happens at each site, and the metric of the reference run (NaN without one)."""
    if reference is None:
        return as_action(operation, None), math.nan
    logits, cache = model.run_with_cache(**reference, names_filter=list(names))
    return as_action(operation, cache, alpha), float(measured(metric, logits))
