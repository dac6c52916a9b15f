"""Sites, edges and circuits of several runs that differ in length: their means."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.long_work import work_through
from hooked_asr.patching.circuits import Circuit
from hooked_asr.patching.edge_result import EdgeResult
from hooked_asr.patching.edges import edge_attribution
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.faithfulness import FaithfulnessResult, faithfulness
from hooked_asr.patching.graph import computation_graph
from hooked_asr.patching.graph_runs import EdgeError
from hooked_asr.patching.grid import AnySites, are_several
from hooked_asr.patching.operations import Inputs, SweepError
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.sweep import sweep
from hooked_asr.weights.fingerprint import computed_with


@runtime_checkable
class Runs(Protocol):
    """Two runs and a metric of their own, as `patching_inputs` and `loop_forks` give them."""

    @property
    def clean(self) -> Inputs: ...
    @property
    def reference(self) -> Inputs: ...
    @property
    def metric(self) -> AnyMetric: ...


def sweep_over(
    model: Any, runs: Sequence[Runs], *, sites: AnySites, metric: str = "", **options: Any
) -> Any:
    """The mean over runs of what each site does, as `sweep` gives it; a list for several grids.

        sweep_over(model, loop_forks(model, heard), sites=heads("decoder.cross_attn")).plot()

    - `sites`: as in `sweep`, at all positions, or at those that every run has.
    - `metric`: what the runs' metrics are called between them; by default the first one's name.
    - `options`: of `sweep`.

    Raises `SweepError` for no runs, and as `sweep`.
    """
    if not runs:
        raise SweepError("there are no runs: give at least one")
    bar = tqdm(runs, desc="sweep", unit="run", disable=not options.pop("progress", True))
    found = [
        sweep(
            model,
            clean=one.clean,
            reference=one.reference,
            metric=one.metric,
            sites=sites,
            **options,
            progress=False,
        )
        for one in bar
    ]
    if not are_several(sites):
        return _mean_sweep(found, metric)
    return [_mean_sweep(of_grid, metric) for of_grid in zip(*found, strict=True)]


def _mean_sweep(found: Sequence[SweepResult], metric: str) -> SweepResult:
    return dataclasses.replace(
        found[0],
        values=torch.stack([one.values for one in found]).mean(0),
        clean=fmean(one.clean for one in found),
        reference=fmean(one.reference for one in found),
        metric=metric or found[0].metric,
        tokens=None,
    )


def edges_over(
    model: Any,
    runs: Sequence[Runs],
    *,
    metric: str = "",
    method: str = "plain",
    steps: int = 5,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EdgeResult:
    """The mean over runs of each edge's score, as `edge_attribution` gives it.

        edges = edges_over(model, loop_forks(model, heard), metric="goes on less ends")
        circuit = edges.circuit(n_edges=100)

    - `metric`: what the runs' metrics are called between them; by default the first one's name.
    - `method`, `steps`: as in `edge_attribution`.
    - `out`: a folder where scores are kept as they come; run again, it goes on where it was.

    Raises `EdgeError` for no runs, and as `edge_attribution`; `RecordsError`.
    """
    if not runs:
        raise EdgeError("there are no runs: give at least one")
    graph = computation_graph(model.config)

    def score(key: str) -> dict[str, Any]:
        one = runs[int(key)]
        found = edge_attribution(
            model,
            clean=one.clean,
            reference=one.reference,
            metric=one.metric,
            method=method,
            steps=steps,
            progress=False,
        )
        return {
            "clean": found.clean,
            "reference": found.reference,
            "scores": _packed(found.scores[graph.edges]),
        }

    done = work_through(
        [str(i) for i in range(len(runs))],
        score,
        folder=out,
        asked=None if out is None else _asked(model, runs, method, steps),
        progress=progress,
        name="edges",
        unit="run",
    )
    records = list(done.results.values())
    scores = torch.zeros(graph.edges.shape, dtype=torch.float64)
    scores[graph.edges] = torch.stack([_unpacked(one["scores"]) for one in records]).mean(0)
    return EdgeResult(
        graph=graph,
        scores=scores,
        clean=fmean(one["clean"] for one in records),
        reference=fmean(one["reference"] for one in records),
        metric=metric or metric_name(runs[0].metric),
        method=method,
        steps=steps if method == "integrated" else 1,
        model=model.name,
    )


def faithfulness_over(
    model: Any,
    circuits: Circuit | Sequence[Circuit],
    runs: Sequence[Runs],
    *,
    metric: str = "",
    ablation: str = "reference",
    progress: bool = True,
) -> FaithfulnessResult:
    """The mean over runs of each circuit's metric, as `faithfulness` gives it.

    `faithfulness` of the result is that of the means.

    Raises `EdgeError` for no runs, and as `faithfulness`.
    """
    if not runs:
        raise EdgeError("there are no runs: give at least one")
    bar = tqdm(runs, desc="faithfulness", unit="run", disable=not progress)
    found = [
        faithfulness(
            model,
            circuits,
            clean=one.clean,
            reference=one.reference,
            metric=one.metric,
            ablation=ablation,
            progress=False,
        )
        for one in bar
    ]
    return dataclasses.replace(
        found[0],
        values=[fmean(values) for values in zip(*(one.values for one in found), strict=True)],
        clean=fmean(one.clean for one in found),
        empty=fmean(one.empty for one in found),
        metric=metric or found[0].metric,
    )


def _asked(model: Any, runs: Sequence[Runs], method: str, steps: int) -> dict[str, Any]:
    made = hashlib.sha256()
    for one in runs:
        made.update(metric_name(one.metric).encode())
        for inputs in (one.clean, one.reference):
            for name in sorted(inputs):
                made.update(inputs[name].cpu().contiguous().numpy().tobytes())
    told = {"work": "edges_over", **computed_with(model), "runs (hash)": made.hexdigest()}
    return {**told, "method": method, "steps": steps}


def _packed(scores: Float[Tensor, " edge"]) -> str:
    return base64.b64encode(scores.double().numpy().tobytes()).decode("ascii")


def _unpacked(text: str) -> Float[Tensor, " edge"]:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64)
