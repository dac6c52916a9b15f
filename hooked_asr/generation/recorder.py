"""Activations of a decoding, step after step, and joined as one run would give them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.names import HookSpec

Activation = Float[Tensor, "..."]


class StepRecorder:
    """A hook function that keeps what it sees at every step.

    `heads` names those to keep of a hook; all of the others' are kept.
    """

    def __init__(self, heads: Mapping[str, list[int]] | None = None) -> None:
        self._heads = heads or {}
        self._steps: dict[str, list[Activation]] = defaultdict(list)
        self._specs: dict[str, HookSpec] = {}

    def __call__(self, x: Activation, hook: Any) -> None:
        kept = x.detach()
        if hook.name in self._heads:
            kept = kept.index_select(
                hook.spec.head_axis, torch.tensor(self._heads[hook.name], device=x.device)
            )
        self._steps[hook.name].append(kept.clone())
        self._specs[hook.name] = hook.spec

    def joined(self) -> dict[str, Activation]:
        """Each activation over all positions."""
        return {name: _join(self._specs[name], steps) for name, steps in self._steps.items()}


def _join(spec: HookSpec, steps: list[Activation]) -> Activation:
    if len(steps) == 1:
        return steps[0]
    if spec.axes[-1] == "key":  # an early query has fewer keys than the last
        nothing = 0.0 if spec.leaf == "hook_pattern" else float("-inf")
        n_keys = steps[-1].shape[-1]
        steps = [F.pad(step, (0, n_keys - step.shape[-1]), value=nothing) for step in steps]
    return torch.cat(steps, dim=spec.position_axis)


def rows_of(spec: HookSpec, x: Activation, rows: list[int], n_pos: int) -> Activation:
    """Some rows of an activation, made up to `n_pos` positions with zeros where it has fewer."""
    chosen = x[rows]
    if spec.clock != "pos":
        return chosen
    missing = n_pos - chosen.shape[spec.position_axis]
    padding = [0, 0] * (x.ndim - 1 - spec.position_axis) + [0, missing]
    if spec.axes[-1] == "key":
        padding[1] = n_pos - chosen.shape[-1]
    return F.pad(chosen, padding)
