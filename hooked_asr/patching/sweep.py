"""Activation patching and ablation over a grid of sites, each site an intervention of its own."""

from __future__ import annotations

from typing import Any

from hooked_asr.patching.engine.measure import AnyMetric
from hooked_asr.patching.grid import AnySites, Sites, are_several, as_grids
from hooked_asr.patching.grid_sweep import GridSweep
from hooked_asr.patching.operations import Operation, Run, as_inputs, operation_name
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.text_metrics import TextMetric


def sweep(
    model: Any,
    *,
    clean: Run,
    sites: AnySites,
    metric: AnyMetric | TextMetric,
    reference: Run | None = None,
    operation: Operation | None = None,
    alpha: float = 1.0,
    memory: int | str | None = None,
    progress: bool = True,
) -> Any:
    """Intervene at one site after the other, and measure what each does to the logits.

    It runs on `clean`; what is patched in comes from `reference`. Swap them to denoise instead of
    noise.

    - `clean`, `reference`: the inputs of a run, as `model.to_inputs` gives them; or a pair of
      log-mel frames and tokens.
    - `sites`: see `heads`, `neurons` and `components`; or a list of single sites, or their texts. A
      list of grids gives a list of results, all from the same runs.
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
    name = operation_name(operation)
    grids = as_grids(sites, model.config, inputs["tokens"].shape[1], name)
    one = GridSweep(model, inputs, others, metric, operation, alpha, memory)
    desc = f"{name} {sites.name}" if isinstance(sites, Sites) else name
    results: list[SweepResult] = one.run(grids, progress, desc)
    return results if are_several(sites) else results[0]
