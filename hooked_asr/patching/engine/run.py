"""Rows of interventions, run chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.patching.engine.chunk import Chunk
from hooked_asr.patching.engine.measure import AnyMetric
from hooked_asr.patching.engine.memory import as_bytes
from hooked_asr.patching.engine.plan import Inputs, Plan


@dataclass(frozen=True, eq=False)
class RowValues:
    """The metric with each row's interventions, and without any.

    `plain`: numbers of the rows that were run each in a whole forward of its own, because what
    their hooks do could not be placed.
    """

    values: Float[Tensor, " row"]
    clean: float
    plain: tuple[int, ...]


@torch.no_grad()
def run_rows(
    model: Any,
    inputs: Inputs,
    rows: Sequence[Iterable[Any]],
    metric: AnyMetric,
    *,
    memory: int | str | None = None,
    reserved: int = 0,
    progress: bool = False,
    desc: str = "rows",
) -> RowValues:
    """What many rows of interventions, each by itself, do to one input.

    A row joins the batch where it first differs from the clean run, and is computed at the
    positions from there on alone; what no row has touched is computed once for all. The numbers
    are those of one `run_with_hooks` for each row.

    - `rows`: the hooks of each. Interventions at one hook each are placed; a row with any other
      hook function, or while functions are attached to the model, is run by itself.
    - `memory`: what the sweep may take beside model and inputs, in bytes or as "2 GiB"; 1 GiB if
      not said, on a GPU half of what is free. `reserved`: what of it the caller has taken already.

    Raises `MemoryLimitError` where not even one row fits.
    """
    plan = Plan(model, inputs, [tuple(row) for row in rows], metric)
    limit = as_bytes(memory, model.device) - reserved
    chunks = plan.chunks(limit)
    clean = plan.clean_run()
    values = torch.full((len(rows),), torch.nan)
    with tqdm(total=len(rows), desc=desc, unit="site", disable=not progress) as bar:
        for number in plan.untouched:
            values[number] = plan.measure(clean.logits)
            bar.update()
        for chunk in chunks:
            read = Chunk(clean, chunk).logits(plan.at_once(chunk, limit))
            measured = {row.number: plan.measure(logits) for row, logits in read}
            # Only now: each number that leaves a GPU waits for it.
            values[list(measured)] = torch.stack(list(measured.values())).cpu()
            bar.update(len(chunk))
        for number in plan.plain:
            values[number] = plan.measured_plainly(number, clean.audio)
            bar.update()
    return RowValues(values, float(plan.measure(clean.logits)), tuple(plan.plain))
