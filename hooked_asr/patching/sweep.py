"""Activation patching and ablation over a grid of sites, one intervention at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import Intervention, Mean, Replace, Site, Zero
from hooked_asr.interventions.actions import Action
from hooked_asr.patching.grid import Grid, Sites
from hooked_asr.patching.result import SweepResult
from hooked_asr.shapes import Logits, Tokens

AnyMetric = Callable[[Logits], Shaped[Tensor, "..."] | float]
Inputs = Mapping[str, Tensor]
# Two runs may differ in clips and tokens, so these axes have no names.
Run = tuple[Float[Tensor, "_ n_mels frame"], Int[Tensor, "_ _"]] | Inputs


class SweepError(HookedASRError):
    """A sweep that cannot be run as asked."""


@torch.no_grad()
def sweep(
    model: Any,
    *,
    clean: Run,
    sites: Sites,
    metric: AnyMetric,
    reference: Run | None = None,
    operation: str | None = None,
    alpha: float = 1.0,
    progress: bool = True,
) -> SweepResult:
    """Intervene at one site after the other, and measure what each does to the logits.

    It runs on `clean`; what is patched in comes from `reference`. Swap them to denoise instead of
    noise.

    - `clean`, `reference`: the inputs of a run, as `model.to_inputs` gives them; or a pair of
      log-mel frames and tokens.
    - `sites`: see `heads` and `components`.
    - `metric`: a function of logits `[batch pos d_vocab]` (see `metrics`); the mean over clips is
      what is reported.
    - `operation`: "replace" by the reference (the default where there is one), with `alpha` the
      share that comes from it; "zero" (the default where there is none); or "mean", over the
      reference's positions, or over the clean run's own.

    The clean encoder output is computed once for all decoder sites.

    Raises `SweepError` where operation, reference and inputs do not fit together.

    Source: "Locating and Editing Factual Associations in GPT" (2022), section 2; for recognisers,
    "Beyond Transcription: Mechanistic Interpretability in ASR" (2025).
    """
    operation = operation or ("zero" if reference is None else "replace")
    inputs = as_inputs(clean)
    others = None if reference is None else as_inputs(reference)
    grid = sites.grid(model.config, inputs["tokens"].shape[1])
    _check(operation, alpha, inputs, others)
    action, reference_value = _action(model, grid, metric, others, operation, alpha)
    encoded = model.encoded(inputs)
    clean_value = _measure(metric, model(**encoded))
    run_on = inputs if sites.stack == "encoder" else encoded

    def measure(site: Site) -> float:
        hooks = [Intervention(site, action)]
        return _measure(metric, model.run_with_hooks(fwd_hooks=hooks, **run_on))

    bar = tqdm(grid.sites, desc=f"{operation} {_name(sites)}", unit="site", disable=not progress)
    values = torch.tensor([measure(site) for site in bar]).reshape(grid.shape)
    return SweepResult(
        values=values,
        axes=grid.axes,
        sites=[str(site) for site in grid.sites],
        clean=clean_value,
        reference=reference_value,
        metric=getattr(metric, "name", getattr(metric, "__name__", "metric")),
        operation=operation,
        alpha=alpha,
        model=model.name,
        tokens=_token_texts(model, sites, inputs["tokens"]),
    )


def as_inputs(run: Run) -> Inputs:
    """A run's inputs by name."""
    return run if isinstance(run, Mapping) else dict(zip(("mel", "tokens"), run, strict=True))


def _check(operation: str, alpha: float, clean: Inputs, reference: Inputs | None) -> None:
    if operation not in ("replace", "zero", "mean"):
        raise SweepError(f"operations are 'replace', 'zero' and 'mean'; got {operation!r}")
    if operation != "replace" and alpha != 1.0:
        raise SweepError(f"alpha is for 'replace' alone; got alpha={alpha} and {operation!r}")
    if operation == "replace" and reference is None:
        raise SweepError("to replace, a sweep needs a reference: the inputs to patch in from")
    if operation == "replace" and reference is not None:
        ours, theirs = clean["tokens"].shape[1], reference["tokens"].shape[1]
        if ours != theirs:
            raise SweepError(
                f"clean has {ours} tokens and reference {theirs}: positions must answer to each "
                "other. Teacher-force both with the same text, and give clips of one length where "
                "prompts hold the audio"
            )


def _action(
    model: Any,
    grid: Grid,
    metric: AnyMetric,
    reference: Inputs | None,
    operation: str,
    alpha: float,
) -> tuple[Action, float]:
    """What happens at each site, and the metric of the reference run (NaN without one)."""
    cache, value = None, math.nan
    if reference is not None:
        touched = list(dict.fromkeys(site.hook for site in grid.sites))
        logits, cache = model.run_with_cache(**reference, names_filter=touched)
        value = _measure(metric, logits)
    if operation == "zero":
        return Zero(), value
    if operation == "mean" or cache is None:
        return Mean(cache), value
    return Replace(cache, alpha), value


def _measure(metric: AnyMetric, logits: Logits) -> float:
    return float(torch.as_tensor(metric(logits)).float().mean())


def _name(sites: Sites) -> str:
    return ".".join(filter(None, (sites.stack, sites.attention)))


def _token_texts(model: Any, sites: Sites, tokens: Tokens) -> list[str] | None:
    """Texts of the decoder's positions, where one clip has them and the model can read them."""
    if getattr(model, "tokenizer", None) is None or sites.stack == "encoder" or len(tokens) > 1:
        return None
    return model.to_str_tokens(tokens)
