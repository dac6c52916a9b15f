"""Estimates at every unit and position of a hook, summed over each of many sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.interventions import Site
from hooked_asr.interventions.region import region
from hooked_asr.names import HookSpec, select
from hooked_asr.patching.gradients import Activations, Passed


class SiteSums:
    """How estimates that stand in the shape of activations sum up to one for each site.

    `sites` are found in the table once; `products` and `of` may then follow each gradient anew.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        table: Mapping[str, HookSpec],
        hooks: Mapping[str, Passed],
    ) -> None:
        self.sites, self._hooks = sites, hooks
        chosen = {site.hook: select(site.hook, table) for site in sites}
        self.names = [chosen[site.hook] for site in sites]
        # Most sites take all of the last axis; then it need not be kept for each of them.
        self._by_neuron = {
            name
            for site, names in zip(sites, self.names, strict=True)
            for name in names
            if site.neurons is not None
        }

    def products(self, moves: Activations, gradients: Activations) -> Activations:
        """Move times gradient, summed over clips and what no site tells apart; on the CPU."""
        return {name: self._product(name, move, gradients[name]) for name, move in moves.items()}

    def of(self, estimates: Mapping[str, Tensor]) -> Float[Tensor, " site"]:
        """The sum over each site; of its hooks without an estimate here, nothing."""
        sums = [
            sum((self._at(site, name, estimates[name]) for name in names if name in estimates), 0.0)
            for site, names in zip(self.sites, self.names, strict=True)
        ]
        return torch.tensor(sums, dtype=torch.float64)

    def _product(self, name: str, move: Tensor, gradient: Tensor) -> Tensor:
        exact = torch.promote_types(move.dtype, torch.float32)
        # What does not move changes nothing: masked scores, which may have no gradient.
        gradient = torch.where(move == 0, torch.zeros_like(gradient), gradient)
        product = (move.to(exact) * gradient.to(exact)).sum(0, keepdim=True)
        if name not in self._by_neuron:
            product = product.sum(-1, keepdim=True)
        return product.cpu().double()

    def _at(self, site: Site, name: str, estimate: Tensor) -> float:
        where: Any = region(site, self._hooks[name], estimate)
        return float(estimate[where.local].sum()) if where else 0.0
