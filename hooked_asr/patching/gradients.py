"""One forward whose metric can be differentiated at any hooks, again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.hooks import Hooks
from hooked_asr.interventions import Site
from hooked_asr.interventions.actions import Action
from hooked_asr.interventions.region import region
from hooked_asr.names import HookSpec
from hooked_asr.patching.engine.measure import AnyMetric
from hooked_asr.patching.operations import SweepError

Activations = dict[str, Float[Tensor, "..."]]

_WRITES = ("hook_attn_out", "hook_cross_attn_out", "hook_mlp_out")


class AttributionError(SweepError):
    """An attribution that cannot be made as asked."""


@dataclass(frozen=True)
class Passed:
    """A hook behind a run: what `region` and the actions ask of one within it."""

    name: str
    spec: HookSpec
    positions: range


class GradientRun:
    """A forward, the activations at the hooks `names`, and the gradients of its metric there.

    `value` is the metric's mean over clips. Weights get no gradient, so only what comes behind the
    first of the hooks is kept for the backward pass.

    Raises `AttributionError` for a metric that cannot be differentiated.
    """

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        metric: AnyMetric,
        names: Sequence[str],
        fwd_hooks: Hooks = (),
    ) -> None:
        self.hooks: dict[str, Passed] = {}
        self.layers: list[str] = []  # those whose writing the gradient passes, as "decoder.1"
        self._tensors: Activations = {}
        self._dropped: str | None = None
        writes = [name for name, spec in model.hook_table.items() if spec.leaf in _WRITES]
        # Last in line: what is differentiated is what flows on.
        mine = [(list(names), self._keep), (writes, self._watch_writing)]
        with torch.inference_mode(False), torch.enable_grad(), _frozen(model):
            logits = model.run_with_hooks(fwd_hooks=[*fwd_hooks, *mine], **inputs)
            self._scalar = measured(metric, logits)
        if not self._scalar.requires_grad:
            raise AttributionError(
                "the metric cannot be differentiated: an attribution takes a tensor made of the "
                "logits in smooth steps, not a float, a count or an argmax"
            )
        self.value = float(self._scalar.detach())

    @property
    def activations(self) -> Activations:
        """What passed by, by hook name."""
        return {name: x.detach() for name, x in self._tensors.items()}

    def gradients(self, dropped: str | None = None) -> Activations:
        """The metric's gradient at each hook.

        `dropped`: a layer ("decoder.1") through whose attention and MLP no gradient flows, but
        along the stream beside them alone.
        """
        self._dropped = dropped
        tensors = list(self._tensors.values())
        found = torch.autograd.grad(self._scalar, tensors, retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(x) if grad is None else grad
            for (name, x), grad in zip(self._tensors.items(), found, strict=True)
        }

    def _keep(self, x: Tensor, hook: Any) -> None:
        if not x.requires_grad:  # nothing before it is differentiated
            x.requires_grad_()
        self._tensors[hook.name] = x
        self.hooks[hook.name] = Passed(hook.name, hook.spec, hook.positions)

    def _watch_writing(self, x: Tensor, hook: Any) -> Tensor | None:
        if not x.requires_grad:
            return None
        layer = hook.name.rpartition(".")[0]
        if layer not in self.layers:
            self.layers.append(layer)
        # A tensor behind the one kept: of what is dropped, its own gradient is to be 0 too.
        behind = x.view_as(x)
        behind.register_hook(
            lambda grad: torch.zeros_like(grad) if self._dropped == layer else None
        )
        return behind


def measured(metric: AnyMetric, logits: Tensor) -> Float[Tensor, ""]:
    """The mean of a metric over clips, in float32 at least."""
    value = torch.as_tensor(metric(logits))
    return value.to(torch.promote_types(value.dtype, torch.float32)).mean()


def changes(run: GradientRun, action: Action, names: Sequence[str]) -> Activations:
    """How far an action at every position moves some of a run's activations."""
    clean = run.activations
    return {name: _change(clean[name], run.hooks[name], action) for name in names}


def _change(x: Tensor, hook: Passed, action: Action) -> Tensor:
    everywhere = region(Site(hook.name), hook, x)
    assert everywhere is not None  # only a site with positions may lie in none that passed
    new = action.value(x, hook, everywhere)
    if new is None:
        return torch.zeros_like(x)
    # Masked scores are -inf in both: they stay as they are.
    return torch.where(new == x, torch.zeros_like(x), new - x)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Let no weight ask for a gradient for the length of a `with` block."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_()
