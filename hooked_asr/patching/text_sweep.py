"""Sweeps that are measured on transcripts, decoded under each intervention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_asr.generation.lockstep import Lockstep
from hooked_asr.interventions import Intervention, Site
from hooked_asr.interventions.actions import Action
from hooked_asr.patching.engine import RowValues
from hooked_asr.patching.operations import Inputs, Operation, SweepError, as_action
from hooked_asr.patching.text_metrics import TextMetric


def decoded_rows(
    model: Any,
    inputs: Inputs,
    reference: Inputs | None,
    sites: Sequence[Site],
    metric: TextMetric,
    operation: Operation,
    alpha: float,
    progress: bool,
    desc: str,
) -> tuple[RowValues, float]:
    """A metric of the transcripts under an operation at each site, and of the reference's own.

    Whisper decodes the sites as rows of one batch. Where what comes in hangs on the tokens that are
    said, the reference is decoded in lockstep beside each site, one after the other.

    Raises `SweepError` for several clips at once.
    """
    if len(inputs["tokens"]) != 1:
        raise SweepError(f"transcripts are measured clip by clip; got {len(inputs['tokens'])}")

    def said(run: Inputs, **hooks: Any) -> float:
        return metric(_decoded(model, run, metric, **hooks))

    action = _action(model, reference, sites, operation, alpha)
    interventions = [Intervention(site, action) for site in sites]
    together = hasattr(model, "generate_rows") and not any(one.lockstep for one in interventions)
    if together:
        rows = model.generate_rows(
            inputs["mel"], interventions, progress=progress, **metric.options
        )
        values = [metric(row.text) for row in rows]
    else:
        bar = tqdm(interventions, desc=desc, unit="site", disable=not progress)
        values = [said(inputs, interventions=[one]) for one in bar]
    found = RowValues(
        torch.tensor(values, dtype=torch.float32),
        said(inputs),
        () if together else tuple(range(len(sites))),
    )
    return found, math.nan if reference is None else said(reference)


def _decoded(model: Any, run: Inputs, metric: TextMetric, **hooks: Any) -> str:
    """What a model says to a run: Whisper prompts itself, Qwen2-Audio is given its prompt."""
    given = run if model.config.prefix else {"audio": run["mel"]}
    text: str = model.generate(**given, **metric.options, **hooks)[0].text
    return text


def _action(
    model: Any,
    reference: Inputs | None,
    sites: Sequence[Site],
    operation: Operation,
    alpha: float,
) -> Action:
    """What happens at each site; a reference that no token reaches is cached."""
    if reference is None or not isinstance(operation, str) or operation == "zero":
        return as_action(operation, None, alpha)
    table = model.hook_table
    names = list(dict.fromkeys(site.hook for site in sites))
    if any(name not in table or table[name].clock == "pos" for name in names):
        given = reference if model.config.prefix else reference["mel"]
        return as_action(operation, Lockstep(given), alpha)
    _, cache = model.run_with_cache(**reference, names_filter=names)
    return as_action(operation, cache, alpha)
