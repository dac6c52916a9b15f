"""AtP*: attribution that sees through saturated attention and layers that cancel.

Source: "AtP*: An efficient and scalable method for localizing LLM behaviour to components" (2024),
sections 3.1 (queries and keys) and 3.2 (GradDrop).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.config import STACKS
from hooked_asr.interventions import Site
from hooked_asr.patching.gradients import Activations, GradientRun
from hooked_asr.patching.query_key_fix import QueryKeyFix
from hooked_asr.patching.site_sums import SiteSums

PerGradient = Float[Tensor, "gradient site"]


def atp_star(
    model: Any,
    inputs: Mapping[str, Any],
    run: GradientRun,
    moves: Activations,
    sites: Sequence[Site],
    progress: bool = True,
) -> Float[Tensor, " site"]:
    """The change at each site: of GradDrop's size, with the sign of the undropped estimate.

    - `run`: of `inputs`, at the hooks of `sites` and those that `query_key_fix.beside` names.
    - `moves`: how far the sites' hooks go.
    """
    sums = SiteSums(sites, model.hook_table, run.hooks)
    layers = [f"{stack}.{i}" for stack in STACKS for i in range(model.config.stack(stack).n_layers)]
    estimates = fixed_estimates(model, inputs, run, moves, sums, progress)
    inside = torch.tensor([_inside_one_layer(names, layers) for names in sums.names])
    return grad_drop(estimates, inside, len(layers))


def grad_drop(
    estimates: PerGradient, inside: Float[Tensor, " site"] | Tensor, n_layers: int
) -> Float[Tensor, " site"]:
    """The mean size over layers of the estimates with each dropped; the sign of those undropped.

    - `estimates`: first the undropped ones, then a row for each layer dropped. Layers that have no
      row come before every site, and dropping them changes nothing.
    - `inside`: which sites lie within one layer; the estimate without that layer is 0 of itself,
      and does not count in the mean.

    Two layers cancel each other; without the one, the other shows:

    >>> grad_drop(torch.tensor([[-0.1], [0.0], [2.0], [-2.1]]), torch.tensor([True]), 3)
    tensor([-2.0500])
    """
    undropped, dropped = estimates[0], estimates[1:]
    total = dropped.abs().sum(0) + (n_layers - len(dropped)) * undropped.abs()
    size = total / (n_layers - inside.to(total.dtype))
    return torch.where(undropped < 0, -size, size)


def fixed_estimates(
    model: Any,
    inputs: Mapping[str, Any],
    run: GradientRun,
    moves: Activations,
    sums: SiteSums,
    progress: bool = True,
) -> PerGradient:
    """Estimates with the query-key fix, by the run's gradient and by those with a layer dropped."""
    fix = QueryKeyFix(model, inputs, run, moves, sums)
    linear = {name: move for name, move in moves.items() if name not in fix.names}
    found, of_patterns = [], []
    bar = tqdm([None, *run.layers], desc="AtP*", unit="gradient", disable=not progress)
    for dropped in bar:
        gradients = run.gradients(dropped)
        found.append(sums.of({**sums.products(linear, gradients), **fix.queries(gradients)}))
        of_patterns.append({name: gradients[name] for name in fix.key_patterns})
    return torch.stack(found) + fix.keys(of_patterns, progress)


def _inside_one_layer(names: Sequence[str], layers: Sequence[str]) -> bool:
    """Whether all of a site is within one layer, beside the stream that passes it."""
    around = {
        next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        for name in names
        if "hook_resid" not in name
    }
    in_stream = any("hook_resid" in name for name in names)
    return not in_stream and len(around) == 1 and None not in around
