"""`hooked-asr patch AUDIO`: the sweeps over one recording."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from rich.console import Console

from hooked_asr import patching
from hooked_asr.cli.options import progress
from hooked_asr.cli.patch_tables import Wanted, strongest
from hooked_asr.cli.tables import show
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.patching.inputs import patching_inputs


def patch_clip(model: Recogniser, audio: Path, text: str | None, wanted: Wanted) -> None:
    """Sweep over all sites wanted, write each result down, and rank the sites together."""
    console = Console()
    inputs = patching_inputs(
        model, audio, wanted.reference, wanted.metric, text, wanted.seed, **wanted.asks
    )
    console.print(f"text: {inputs.text}", markup=False, soft_wrap=True)
    console.print(f"metric: {inputs.metric.name}", markup=False, highlight=False)
    results = patching.sweep(
        model,
        clean=inputs.clean,
        reference=inputs.reference,
        sites=list(wanted.sites.values()),
        metric=inputs.metric,
        operation=wanted.operation,
        alpha=wanted.alpha,
        memory=wanted.memory,
        progress=progress(),
    )
    tables = []
    for chosen, result in zip(wanted.sites, results, strict=True):
        stem = wanted.out / _file_name(audio, chosen, wanted)
        for suffix in (".json", ".csv", ".html", ".png"):
            result.save(f"{stem}{suffix}")
        tables.append(result.top(wanted.top))
        console.print(
            f"clean {result.clean:.4f}, reference {result.reference:.4f}; wrote {stem}.*",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    show(strongest(pd.concat(tables, ignore_index=True), wanted.top))


def _file_name(audio: Path, sites: str, wanted: Wanted) -> str:
    """A name that says what was patched, with what, and how it was measured."""
    strength = [] if wanted.alpha == 1 else [f"alpha{wanted.alpha:g}"]
    file = Path(wanted.reference)
    reference = file.stem if file.is_file() else wanted.reference
    parts = [audio.stem, sites, wanted.operation, reference, wanted.metric, *strength]
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)
