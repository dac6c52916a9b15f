"""What a sweep does to every pair of a dataset, made sure of before any is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.interventions import Site
from hooked_asr.manifests import clips_hash
from hooked_asr.names import select
from hooked_asr.patching.grid import Grid, Sites, as_grid
from hooked_asr.patching.manifest import Pair
from hooked_asr.patching.operations import SweepError
from hooked_asr.weights.fingerprint import computed_with

Wish = Sites | tuple[Site | str, ...]

_OPERATIONS = ("replace", "zero", "mean")
_NAMED = 4  # places that a grid's name has room for


@dataclass(frozen=True)
class Plan:
    """What is done to every pair."""

    wishes: tuple[Wish, ...]
    grids: tuple[Grid, ...]
    metric: str
    reference: str | None
    operation: str
    alpha: float
    seed: int
    memory: int | str | None
    prompt: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return [_name(wish, grid) for wish, grid in zip(self.wishes, self.grids, strict=True)]


def wishes_of(sites: Sites | Sequence[Sites | Site | str]) -> tuple[Wish, ...]:
    """Wishes for grids as they come; single sites are a grid of their own, the last.

    Raises `SweepError` where there are none.
    """
    if isinstance(sites, Sites):
        return (sites,)
    grids = [one for one in sites if isinstance(one, Sites)]
    single = tuple(one for one in sites if not isinstance(one, Sites))
    if not sites:
        raise SweepError("there are no sites to sweep over: give heads(), components(), or a list")
    return (*grids, single) if single else tuple(grids)


def grids_of(model: Any, wishes: Sequence[Wish], operation: str) -> list[Grid]:
    """The grids of all wishes, which are the same on every clip.

    Raises `SitesError` and `UnknownHookError` for what the model has no place for, `SweepError` for
    a place that is another one in each clip.
    """
    for wish in wishes:
        if isinstance(wish, Sites) and wish.stack == "decoder" and isinstance(wish.positions, str):
            raise SweepError(
                f"{wish.name}: transcripts differ, and each decoder position means another token "
                "in each: give a list of positions, or None for all of them at once"
            )
    n_pos = model.config.decoder.n_ctx
    grids = [as_grid(wish, model.config, n_pos, operation) for wish in wishes]
    for grid in grids:
        select([site.hook for site in grid.sites], model.hook_table)  # refuses unknown names
    return grids


def operation_of(
    operation: str | None, alpha: float, reference: str | None, pairs: Sequence[Pair]
) -> str:
    """The operation, checked: "replace" if not said, "zero" where no pair has a reference."""
    without = [pair.id for pair in pairs if pair.reference_in(reference) is None]
    operation = operation or ("zero" if len(without) == len(pairs) else "replace")
    if operation not in _OPERATIONS:
        raise SweepError(f"operations are 'replace', 'zero' and 'mean'; got {operation!r}")
    if operation != "replace" and alpha != 1.0:
        raise SweepError(f"alpha is for 'replace' alone; got alpha={alpha} and {operation!r}")
    if operation == "replace" and without:
        raise SweepError(
            f"to replace, every pair needs a reference; {without[0]!r} has none, and neither has "
            "the sweep"
        )
    return operation


def _name(wish: Wish, grid: Grid) -> str:
    """What the sites of a grid have in common."""
    if not isinstance(wish, Sites):
        return "sites"
    places = [*grid.axes.get("position", ()), *grid.axes.get("seconds", ())]
    where = ",".join(map(str, places)) if len(places) <= _NAMED else f"{len(places)} places"
    return f"{wish.name}@{where}" if places else wish.name


def asked_of(model: Any, pairs: Sequence[Pair], plan: Plan) -> dict[str, Any]:
    """All that the numbers depend on."""
    sites = json.dumps([list(map(str, grid.sites)) for grid in plan.grids])
    return {
        "work": "sweep_dataset",
        **computed_with(model),
        "pairs (hash)": clips_hash(pairs),
        "sites": plan.names,
        "sites (hash)": hashlib.sha256(sites.encode()).hexdigest(),
        "metric": plan.metric,
        "reference": plan.reference,
        "operation": plan.operation,
        "alpha": plan.alpha,
        "seed": plan.seed,
        "memory": plan.memory,
        "prompt": plan.prompt,
    }
