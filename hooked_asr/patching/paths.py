"""Path patching: what flows from a sender to a receiver along that path alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.interventions import Site
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.grid import Sites, as_grid
from hooked_asr.patching.grid_sweep import token_texts
from hooked_asr.patching.operations import Inputs, Run, as_inputs
from hooked_asr.patching.path_ends import LOGITS, Ends, PathError, SiteLike
from hooked_asr.patching.path_runs import PathRuns
from hooked_asr.patching.result import SweepResult
from hooked_asr.shapes import Logits

_NAMED = 3  # receivers of a result, at most


@torch.no_grad()
def path_patching(
    model: Any,
    *,
    clean: Run,
    reference: Run,
    senders: Sites | SiteLike | Sequence[SiteLike],
    receivers: SiteLike | Sequence[SiteLike],
    metric: AnyMetric,
    freeze: Sequence[str] = ("attn", "cross_attn", "mlp"),
    progress: bool = True,
) -> SweepResult:
    """What each sender tells the receivers on the straight way, measured at the logits.

    For each sender two runs on `clean`. In the first the sender gives what it gave in `reference`,
    every other part that `freeze` names gives what it gave in the clean run, and what the receivers
    read is kept. In the second nothing is changed but that the receivers read what was kept.

    - `senders`: a grid, as `heads` gives it, or sites: heads, what a part writes (`decoder.2.mlp`),
      neurons, the stream, `hook_embed` or `hook_decoder_embed`. A glob sends from all at once.
    - `receivers`: what a head or an MLP reads: `Site("decoder.2.attn.hook_q", heads=3)`, `hook_k`
      and `hook_v` (their heads are those of keys, where several queries share one), `mlp.hook_pre`,
      or what these are projected from (`hook_q_input`, …). `decoder.2.attn.3`, `decoder.2.attn` and
      `decoder.2.mlp` mean all that these read. Or "logits", alone: the first run is then measured.
    - `metric`: as `sweep` takes it.
    - `freeze`: "attn", "cross_attn" and "mlp", in both stacks. With all of them nothing but the
      residual stream, and the norm in front of the receiver, is between the two (the direct path).
      Without "mlp" the MLPs in between answer to what they read: in Wang et al. MLPs are part of
      the path, and only heads are frozen.

    The norms on the way are no parts: they are computed anew. Where everything is frozen, the
    stream behind a sender is the clean one plus what the sender writes more, so that the first run
    is one of the receivers' layers alone.

    In a grid, a sender from which no path leads to a receiver (it comes later, or all ways are
    frozen) changes nothing; in a list it is an error.

    Raises `PathError` for that, where no sender of a grid has a path, for what can neither send nor
    receive, and for runs whose positions do not answer to each other; `SitesError` for no sender.

    Source: "Localizing Model Behavior with Path Patching" (Goldowsky-Dill et al., 2023);
    "Interpretability in the Wild" (Wang et al., 2022), section 3.1.
    """
    run, other = as_inputs(clean), as_inputs(reference)
    _check_runs(run, other)
    ends = Ends(model, tuple(freeze))
    receiving = ends.receivers(receivers)
    name = f"path patching to {_named(receiving)}"
    listed = [senders] if isinstance(senders, Site | str) else senders
    grid = as_grid(listed, model.config, run["tokens"].shape[1], name)
    sending = [ends.senders(site) for site in grid.sites]
    there = [ends.lead(one, receiving) for one in sending]
    _check_paths(there, grid.sites, receiving, isinstance(senders, Sites))
    runs = PathRuns.of(ends, run, other, [site for one in sending for site in one], receiving)
    return SweepResult(
        values=_values(runs, sending, there, metric, progress).reshape(grid.shape),
        axes=grid.axes,
        sites=[str(site) for site in grid.sites],
        clean=_measure(metric, runs.clean_logits),
        reference=_measure(metric, runs.reference_logits),
        metric=metric_name(metric),
        operation=name,
        alpha=1.0,
        model=model.name,
        tokens=token_texts(model, grid, run["tokens"]),
    )


def _values(
    runs: PathRuns, senders: list[list[Site]], there: list[bool], metric: AnyMetric, progress: bool
) -> Float[Tensor, " sender"]:
    """The metric for each sender; the clean one where no path leads to a receiver."""
    clean = _measure(metric, runs.clean_logits)
    pairs = list(zip(senders, there, strict=True))
    bar = tqdm(pairs, desc="path patching", unit="sender", disable=not progress)
    return torch.tensor(
        [_measure(metric, runs.patched(one)) if leads else clean for one, leads in bar]
    )


def _check_runs(clean: Inputs, reference: Inputs) -> None:
    ours, theirs = clean["tokens"].shape[1], reference["tokens"].shape[1]
    if ours != theirs:
        raise PathError(
            f"clean has {ours} tokens and reference {theirs}: positions must answer to each other. "
            "Teacher-force both with the same text, and give clips of one length where prompts "
            "hold the audio"
        )


def _check_paths(there: list[bool], senders: list[Site], receivers: list[Site], grid: bool) -> None:
    if any(there) if grid else all(there):
        return
    who = "any of the senders" if grid else str(senders[there.index(False)])
    raise PathError(
        f"no path leads from {who} to {_named(receivers)}: a sender comes before a receiver; "
        "hook_k and hook_v of cross_attn hear the encoder alone, and where cross_attn is frozen "
        "nothing else in their decoder hears it"
    )


def _named(receivers: list[Site]) -> str:
    if receivers == [Site(LOGITS)]:
        return "the logits"
    names = list(map(str, receivers))
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _measure(metric: AnyMetric, logits: Logits) -> float:
    return float(torch.as_tensor(metric(logits)).float().mean())
