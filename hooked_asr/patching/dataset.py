"""A sweep over each of many recordings: which sites matter on the whole, and how surely."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import Site
from hooked_asr.long_work import Done, work_through
from hooked_asr.patching.dataset_plan import (
    Plan,
    asked_of,
    grids_of,
    operation_of,
    wishes_of,
)
from hooked_asr.patching.dataset_result import DatasetResult, SweptPair, SweptSites
from hooked_asr.patching.grid import Sites, as_grid
from hooked_asr.patching.grid_sweep import GridSweep
from hooked_asr.patching.inputs import PatchingInputs, patching_inputs
from hooked_asr.patching.manifest import Pair, read_pairs
from hooked_asr.patching.operations import Inputs
from hooked_asr.patching.result import SweepResult
from hooked_asr.processes import Process


class PairError(HookedASRError):
    """A pair that no sweep can be run on."""


@torch.no_grad()
def sweep_dataset(
    model: Any,
    pairs: str | os.PathLike[str] | Iterable[Mapping[str, Any] | Pair],
    *,
    sites: Sites | Sequence[Sites | Site | str],
    metric: str = "transcript",
    reference: str | None = "noise",
    operation: str | None = None,
    alpha: float = 1.0,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    skip_errors: bool = False,
    memory: int | str | None = None,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> DatasetResult:
    """Run a sweep on each pair of recordings, and gather what every site does over all of them.

        pairs = [{"audio": "one.wav"}, {"audio": "other.wav", "reference": "noisy.wav"}]
        result = sweep_dataset(model, pairs, sites=heads("decoder.cross_attn"), out="run")
        print(result.top())

    Numbers are those of `sweep` on `patching_inputs(..., seed=pair_seed(seed, id))`, pair by pair.

    - `pairs`: a manifest or rows, see `read_pairs`.
    - `sites`: one wish or several, or a list of single sites. Decoder positions must be a list, or
      None for all at once: "each" means others in each transcript.
    - `metric`, `reference`, `prompt` (`language`, …): as in `patching_inputs`, for pairs that say
      nothing else. No reference at all leaves "zero", and "mean" over the clean run's positions.
    - `operation`, `alpha`: as in `sweep`.
    - `out`: a folder where results are kept as they come. Run again, it goes on where it was,
      however it ended, and gives the numbers of an uninterrupted run.
    - `skip_errors`: note pairs that cannot be run, and go on; otherwise the first one ends it.
    - `memory`: as in `sweep`, but by default a quarter of a GPU's whole memory: how many sites are
      run together may change the last digits, and is not to hang on what is free just then.
    - `process`: under torchrun, and wherever `RANK` and `WORLD_SIZE` are set, processes share the
      pairs, and each gives the whole result; they need the same `out`.

    Raises `ManifestError`, `SitesError` and `SweepError` before anything is run; `RecordsError` for
    an `out` that holds other work; `PairError` for a pair that cannot be run, or where none can.
    """
    read = read_pairs(pairs)
    operation = operation_of(operation, alpha, reference, read)
    wishes = wishes_of(sites)
    grids = tuple(grids_of(model, wishes, operation))
    plan = Plan(wishes, grids, metric, reference, operation, alpha, seed, memory, prompt)
    by_id = {pair.id: pair for pair in read}
    done = work_through(
        list(by_id),
        lambda name: _swept(model, by_id[name], plan),
        folder=out,
        asked=None if out is None else asked_of(model, read, plan),
        skip=(PairError,) if skip_errors else (),
        process=process,
        progress=progress,
        name=operation,
        unit="pair",
    )
    return _gathered(model, by_id, plan, done)


def pair_seed(seed: int, name: str) -> int:
    """The seed of a pair's own noise: of a sweep's seed and the pair's id, and of nothing else.

    >>> pair_seed(0, "a.wav")
    2270964188
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


# --- One pair, and all of them --------------------------------------------------------------------


def _swept(model: Any, pair: Pair, plan: Plan) -> dict[str, Any]:
    """What a pair's sweeps give, as JSON holds it."""
    language = {} if pair.language is None else {"language": pair.language}
    other = pair.reference_in(plan.reference)
    try:
        inputs = patching_inputs(
            model,
            pair.audio_path,
            "silence" if other is None else other,
            pair.metric or plan.metric,
            pair.text,
            pair_seed(plan.seed, pair.id),
            **{**plan.prompt, **language},
        )
        reference = None if other is None else inputs.reference
        results = _sweep(model, inputs, reference, plan)
    except (HookedASRError, OSError) as error:
        raise PairError(f"pair {pair.id!r} ({pair.audio_path}): {error}") from error
    return {
        "text": inputs.text,
        "metric": inputs.metric.name,
        "clean": [result.clean for result in results],
        "reference": [result.reference for result in results],
        "values": [result.values.double().flatten().tolist() for result in results],
    }


def _sweep(
    model: Any, inputs: PatchingInputs, reference: Inputs | None, plan: Plan
) -> list[SweepResult]:
    """All grids from the same runs."""
    n_pos = inputs.clean["tokens"].shape[1]
    grids = [as_grid(wish, model.config, n_pos, plan.operation) for wish in plan.wishes]
    one = GridSweep(
        model,
        inputs.clean,
        reference,
        inputs.metric,
        plan.operation,
        plan.alpha,
        _memory(model) if plan.memory is None else plan.memory,
    )
    return one.run(grids)


def _memory(model: Any) -> int | None:
    """A quarter of a GPU; elsewhere what `sweep` takes, which is always the same."""
    device = torch.device(model.device)
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory // 4


def _gathered(model: Any, pairs: Mapping[str, Pair], plan: Plan, done: Done) -> DatasetResult:
    if not done.results:
        first = next(iter(done.failures.values()))
        raise PairError(f"none of {len(pairs)} pairs can be run; the first: {first}")
    records = done.results.values()
    swept = [
        SweptSites(
            name=name,
            axes=grid.axes,
            sites=[str(site) for site in grid.sites],
            values=_numbers([one["values"][i] for one in records]).reshape(-1, *grid.shape),
            clean=_numbers([one["clean"][i] for one in records]),
            reference=_numbers([one["reference"][i] for one in records]),
        )
        for i, (name, grid) in enumerate(zip(plan.names, plan.grids, strict=True))
    ]
    return DatasetResult(
        pairs=[_swept_pair(pairs[name], one, plan) for name, one in done.results.items()],
        swept=swept,
        failed=done.failures,
        operation=plan.operation,
        alpha=plan.alpha,
        seed=plan.seed,
        model=model.name,
    )


def _swept_pair(pair: Pair, record: Mapping[str, Any], plan: Plan) -> SweptPair:
    return SweptPair(
        id=pair.id,
        audio=pair.audio,
        reference=pair.reference or plan.reference,
        text=record["text"],
        metric=record["metric"],
        group=pair.group,
    )


def _numbers(values: list[Any]) -> Float64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)
