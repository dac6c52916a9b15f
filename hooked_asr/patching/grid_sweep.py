"""The sites of several grids, swept together on one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.cache import CacheRecorder
from hooked_asr.interventions import Intervention, Site
from hooked_asr.patching.engine import RowValues, run_rows
from hooked_asr.patching.engine.clean import CleanRun
from hooked_asr.patching.engine.measure import AnyMetric, measured, metric_name, reads_of
from hooked_asr.patching.grid import Grid
from hooked_asr.patching.operations import (
    Inputs,
    Operation,
    as_action,
    check_operation,
    operation_name,
)
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.text_metrics import TextMetric
from hooked_asr.patching.text_sweep import decoded_rows
from hooked_asr.shapes import Tokens

# What may be patched behind the last layer, which otherwise is unembedded where it is read alone.
_TAIL = ("decoder_final_ln", "unembed")


@dataclass(frozen=True)
class GridSweep:
    """What is done at every site, and how it is measured: see `sweep`."""

    model: Any
    clean: Inputs
    reference: Inputs | None
    metric: AnyMetric | TextMetric
    operation: Operation
    alpha: float = 1.0
    memory: int | str | None = None

    @torch.no_grad()
    def run(
        self, grids: Sequence[Grid], progress: bool = False, desc: str = ""
    ) -> list[SweepResult]:
        """A result for each grid, all from the same runs."""
        check_operation(self.operation, self.alpha, self.clean, self.reference)
        sites = [site for grid in grids for site in grid.sites]
        if isinstance(self.metric, TextMetric):
            found, reference = self._decoded(self.metric, sites, progress, desc)
        else:
            found, reference = self._found(self.metric, sites, progress, desc)
        plain = {str(sites[number]) for number in found.plain}
        parts = found.values.split([len(grid.sites) for grid in grids])
        return [
            self._result(grid, values, found.clean, reference, plain)
            for grid, values in zip(grids, parts, strict=True)
        ]

    def _result(
        self, grid: Grid, values: Tensor, clean: float, reference: float, plain: set[str]
    ) -> SweepResult:
        names = list(map(str, grid.sites))
        return SweepResult(
            values=values.reshape(grid.shape),
            axes=grid.axes,
            sites=names,
            clean=clean,
            reference=reference,
            metric=metric_name(self.metric),
            operation=operation_name(self.operation),
            alpha=self.alpha,
            model=self.model.name,
            tokens=token_texts(self.model, grid, self.clean["tokens"]),
            plain=[name for name in names if name in plain],
        )

    def _decoded(
        self, metric: TextMetric, sites: Sequence[Site], progress: bool, desc: str
    ) -> tuple[RowValues, float]:
        return decoded_rows(
            self.model,
            self.clean,
            self.reference,
            sites,
            metric,
            self.operation,
            self.alpha,
            progress,
            desc,
        )

    def _found(
        self, metric: AnyMetric, sites: Sequence[Site], progress: bool, desc: str
    ) -> tuple[RowValues, float]:
        """Every site's row, and the metric of the reference run (NaN without one)."""
        kept, value = self._reference_run(metric, [site.hook for site in sites])
        action = as_action(self.operation, kept, self.alpha)
        found = run_rows(
            self.model,
            self.clean,
            [[Intervention(site, action)] for site in sites],
            metric,
            memory=self.memory,
            reserved=sum(tensor.nbytes for tensor in (kept or {}).values()),
            progress=progress,
            desc=desc,
        )
        return found, value

    def _reference_run(
        self, metric: AnyMetric, touched: list[str]
    ) -> tuple[dict[str, Tensor] | None, float]:
        """The activations that are patched in, and the metric where they come from."""
        if self.reference is None:
            return None, math.nan
        recorder = CacheRecorder({}, device=None, dtype=None, copy=self.model.has_hooks)
        n_pos = self.reference["tokens"].shape[1]
        reads = reads_of(metric, n_pos)
        at_tail = any(name.startswith(_TAIL) for name in touched)
        with self.model.hooks([(list(dict.fromkeys(touched)), recorder.keep)]):
            unembedded = range(n_pos) if at_tail else reads
            logits = CleanRun(self.model, self.reference, unembedded, ()).logits
        here = logits[:, reads.start : reads.stop : reads.step] if at_tail else logits
        return recorder.tensors, float(measured(metric, here))


def token_texts(model: Any, grid: Grid, tokens: Tokens) -> list[str] | None:
    """Texts of the decoder's positions, where one clip has them and the model can read them."""
    in_decoder = grid.sites[0].hook.startswith("decoder")
    if getattr(model, "tokenizer", None) is None or not in_decoder or len(tokens) > 1:
        return None
    texts: list[str] = model.to_str_tokens(tokens)
    return texts
