"""`hooked-asr patch --manifest`: the sweeps over many recordings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from hooked_asr import patching
from hooked_asr.cli.options import progress
from hooked_asr.cli.patch_tables import Wanted, strongest_means
from hooked_asr.cli.tables import show
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.patching import DatasetResult, Pair
from hooked_asr.processes import this_process


def patch_pairs(
    model: Recogniser, pairs: Sequence[Pair], wanted: Wanted, skip_errors: bool
) -> None:
    """Sweep over every pair; the first of several processes writes and shows what came of it."""
    process = this_process()
    result = patching.sweep_dataset(
        model,
        pairs,
        sites=list(wanted.sites.values()),
        metric=wanted.metric,
        reference=wanted.reference,
        operation=wanted.operation,
        alpha=wanted.alpha,
        out=wanted.out,
        seed=wanted.seed,
        skip_errors=skip_errors,
        memory=wanted.memory,
        process=process,
        progress=progress(),
        **wanted.asks,
    )
    if process.rank == 0:
        _write(result, wanted)
        _show(result, wanted)


def _write(result: DatasetResult, wanted: Wanted) -> None:
    for suffix in (".json", ".csv", ".html", ".png"):
        result.save(wanted.out / f"sites{suffix}")
    result.save_pairs(wanted.out / "pairs.csv")
    for suffix in (".html", ".png"):
        result.save_top(wanted.out / f"strongest{suffix}", wanted.top)


def _show(result: DatasetResult, wanted: Wanted) -> None:
    console = Console()
    for name, reason in result.failed.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    n = len(result.pairs)
    console.print(
        f"{n} pairs; wrote {wanted.out}/sites.*, pairs.csv, strongest.*",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    show(strongest_means(result.top(wanted.top)))
