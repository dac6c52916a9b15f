"""Activation patching and ablation over a grid of sites, each site an intervention of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_asr.cache import CacheRecorder
from hooked_asr.interventions import Intervention, Site
from hooked_asr.interventions.actions import Action
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.engine.clean import CleanRun
from hooked_asr.patching.engine.measure import AnyMetric, measured, reads_of
from hooked_asr.patching.grid import Grid, Sites, as_grid
from hooked_asr.patching.operations import (
    Inputs,
    Operation,
    Run,
    SweepError,
    as_action,
    as_inputs,
    check_operation,
    operation_name,
)
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.text_metrics import TextMetric
from hooked_asr.patching.text_sweep import decoded_rows
from hooked_asr.shapes import Tokens

__all__ = ["AnyMetric", "Inputs", "Run", "SweepError", "as_inputs", "sweep"]

# What may be patched behind the last layer, where it is computed at the positions read alone.
_TAIL = ("decoder_final_ln", "unembed")


@torch.no_grad()
def sweep(
    model: Any,
    *,
    clean: Run,
    sites: Sites | Sequence[Site | str],
    metric: AnyMetric | TextMetric,
    reference: Run | None = None,
    operation: Operation | None = None,
    alpha: float = 1.0,
    memory: int | str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Intervene at one site after the other, and measure what each does to the logits.

    It runs on `clean`; what is patched in comes from `reference`. Swap them to denoise instead of
    noise.

    - `clean`, `reference`: the inputs of a run, as `model.to_inputs` gives them; or a pair of
      log-mel frames and tokens.
    - `sites`: see `heads`, `neurons` and `components`; or a list of single sites, or their texts.
    - `metric`: a function of logits `[batch pos d_vocab]` (see `metrics`); the mean over clips is
      what is reported. Or one of the transcript (see `text_metrics`), decoded under each
      intervention: `clean` then is what `model.generate` takes.
    - `operation`: "replace" by the reference (the default where there is one), with `alpha` the
      share that comes from it; "zero" (the default where there is none); "mean", over the
      reference's positions, or over the clean run's own; any action of `interventions`, as
      `Add(direction)`; or a function of the activation at the site, `fn(activation, hook=hook)`.
    - `memory`: what may be taken beside model and inputs: bytes, or as "2 GiB"; 1 GiB if not said,
      on a GPU half of what is free.

    Each site is computed from where it first makes a difference, many together, and the numbers are
    those of one `run_with_hooks` for each. A site whose hooks cannot be placed (a glob, say) is run
    that way, and `plain` of the result names it.

    Raises `SweepError` where operation, reference and inputs do not fit together,
    `MemoryLimitError` where the memory is too little for one site.

    Source: "Locating and Editing Factual Associations in GPT" (2022), section 2; for recognisers,
    "Beyond Transcription: Mechanistic Interpretability in ASR" (2025).
    """
    operation = operation or ("zero" if reference is None else "replace")
    inputs = as_inputs(clean)
    others = None if reference is None else as_inputs(reference)
    grid = as_grid(sites, model.config, inputs["tokens"].shape[1], operation_name(operation))
    check_operation(operation, alpha, inputs, others)
    desc = f"{operation_name(operation)} {_name(sites)}"
    if isinstance(metric, TextMetric):
        found, reference_value = decoded_rows(
            model, inputs, others, grid.sites, metric, operation, alpha, progress, desc
        )
    else:
        action, reference_value, taken = _action(model, grid, metric, others, operation, alpha)
        rows = [[Intervention(site, action)] for site in grid.sites]
        found = run_rows(
            model, inputs, rows, metric, memory=memory, reserved=taken, progress=progress, desc=desc
        )
    return SweepResult(
        values=found.values.reshape(grid.shape),
        axes=grid.axes,
        sites=[str(site) for site in grid.sites],
        clean=found.clean,
        reference=reference_value,
        metric=getattr(metric, "name", getattr(metric, "__name__", "metric")),
        operation=operation_name(operation),
        alpha=alpha,
        model=model.name,
        tokens=token_texts(model, grid, inputs["tokens"]),
        plain=[str(grid.sites[number]) for number in found.plain],
    )


def token_texts(model: Any, grid: Grid, tokens: Tokens) -> list[str] | None:
    """Texts of the decoder's positions, where one clip has them and the model can read them."""
    in_decoder = grid.sites[0].hook.startswith("decoder")
    if getattr(model, "tokenizer", None) is None or not in_decoder or len(tokens) > 1:
        return None
    texts: list[str] = model.to_str_tokens(tokens)
    return texts


def _action(
    model: Any,
    grid: Grid,
    metric: AnyMetric,
    reference: Inputs | None,
    operation: Operation,
    alpha: float,
) -> tuple[Action, float, int]:
    """What happens at each site, the metric of the reference run, and the bytes that are kept."""
    cache, value = None, math.nan
    if reference is not None:
        touched = [site.hook for site in grid.sites]
        cache, value = _reference_run(model, reference, list(dict.fromkeys(touched)), metric)
    taken = sum(tensor.nbytes for tensor in (cache or {}).values())
    return as_action(operation, cache, alpha), value, taken


def _reference_run(
    model: Any, reference: Inputs, touched: list[str], metric: AnyMetric
) -> tuple[dict[str, Tensor], float]:
    """The activations that are patched in, and the metric where they come from (NaN without)."""
    recorder = CacheRecorder({}, device=None, dtype=None, copy=model.has_hooks)
    n_pos = reference["tokens"].shape[1]
    reads = reads_of(metric, n_pos)
    at_tail = any(name.startswith(_TAIL) for name in touched)
    with model.hooks([(touched, recorder.keep)]):
        logits = CleanRun(model, reference, range(n_pos) if at_tail else reads, ()).logits
    here = logits[:, reads.start : reads.stop : reads.step] if at_tail else logits
    return recorder.tensors, float(measured(metric, here))


def _name(sites: Sites | Sequence[Any]) -> str:
    return sites.name if isinstance(sites, Sites) else "sites"
