"""What a sweep does at each site, and whether that fits its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import Custom, Mean, Replace, Zero
from hooked_asr.interventions.actions import Action

Inputs = Mapping[str, Tensor]
# Two runs may differ in clips and tokens, so these axes have no names.
Run = tuple[Float[Tensor, "_ n_mels frame"], Int[Tensor, "_ _"]] | Inputs
Operation = str | Action | Callable[..., Tensor | None]

_NAMED = ("replace", "zero", "mean")


class SweepError(HookedASRError):
    """A sweep that cannot be run as asked."""


def as_inputs(run: Run) -> Inputs:
    """A run's inputs by name."""
    return run if isinstance(run, Mapping) else dict(zip(("mel", "tokens"), run, strict=True))


def operation_name(operation: Operation) -> str:
    """What is done at a site, in a word."""
    if isinstance(operation, str):
        return operation
    if isinstance(operation, Action):
        return operation.kind
    return getattr(operation, "__name__", "custom")


def check_operation(
    operation: Operation, alpha: float, clean: Inputs, reference: Inputs | None
) -> None:
    """Raises `SweepError` where operation and runs do not fit together."""
    if isinstance(operation, str) and operation not in _NAMED:
        raise SweepError(
            "operations are 'replace', 'zero' and 'mean', an action of interventions, or a "
            f"function of the activation; got {operation!r}"
        )
    if operation != "replace":
        if alpha != 1.0:
            name = operation_name(operation)
            raise SweepError(f"alpha is for 'replace' alone; got alpha={alpha} and {name!r}")
        return
    if reference is None:
        raise SweepError("to replace, a sweep needs a reference: the inputs to patch in from")
    ours, theirs = clean["tokens"].shape[1], reference["tokens"].shape[1]
    if ours != theirs:
        raise SweepError(
            f"clean has {ours} tokens and reference {theirs}: positions must answer to each "
            "other. Teacher-force both with the same text, and give clips of one length where "
            "prompts hold the audio"
        )


def as_action(operation: Operation, source: Any, alpha: float = 1.0) -> Action:
    """The action that an operation means, with the source that it takes."""
    if isinstance(operation, Action):
        return operation
    if not isinstance(operation, str):
        return Custom(operation)
    if operation == "zero":
        return Zero()
    return Mean(source) if operation == "mean" else Replace(source, alpha)
