"""`hooked-asr patch`: which sites carry the transcript of a recording."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hooked_asr import patching
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    Prompt,
    asked,
    load,
    progress,
)
from hooked_asr.cli.tables import new_table, show
from hooked_asr.patching.inputs import patching_inputs
from hooked_asr.patching.metric_text import METRIC_HELP


def patch(
    audio: Annotated[Path, typer.Argument(help="A recording of up to 30 s.")],
    model: Model,
    reference: Annotated[
        str,
        typer.Option(
            help="What is patched in: noise (as loud as the clip), silence, or a recording."
        ),
    ] = "noise",
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="decoder.cross_attn (its heads), decoder (its components), decoder.mlp, …; @each "
            "behind it for one position at a time; may be given again.",
            show_default="the attention that hears the audio",
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help=METRIC_HELP)] = "transcript",
    operation: Annotated[
        str, typer.Option(help="replace by the reference, zero, or mean (over the reference).")
    ] = "replace",
    alpha: Annotated[
        float, typer.Option(help="Share that comes from the reference, 0 to 1, in a replace.")
    ] = 1.0,
    text: Annotated[
        str | None, typer.Option(help="The transcript to force; the model's own if not given.")
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    top: Annotated[int, typer.Option(min=1, help="How many sites to print.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and heatmap (HTML, PNG).")
    ] = Path("patching"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Patch each site in turn from a reference run into the clip's own, and rank what it does.

    Rows say how far each patch moves the metric; `normalized` is 0 where it does nothing and 1
    where it does all that the whole reference does.
    """
    # Before anything slow: a misspelt one should not cost the sweeps of the others.
    wishes = {chosen: patching.parse_sites(chosen) for chosen in sites or []}
    hooked = load(model, device, dtype)
    asks = asked(hooked, language=language, prompt=prompt)
    if not wishes:
        heads = patching.attentions(hooked.config)[-1]
        wishes = {heads: patching.heads(heads)}
    for wish in wishes.values():
        wish.check(hooked.config)
    console = Console()
    inputs = patching_inputs(hooked, audio, reference, metric, text, seed, **asks)
    console.print(f"text: {inputs.text}", markup=False, soft_wrap=True)
    console.print(f"metric: {inputs.metric.name}", markup=False, highlight=False)
    tables = []
    for chosen, wish in wishes.items():
        result = patching.sweep(
            hooked,
            clean=inputs.clean,
            reference=inputs.reference,
            sites=wish,
            metric=inputs.metric,
            operation=operation,
            alpha=alpha,
            progress=progress(),
        )
        strength = [] if alpha == 1 else [f"alpha{alpha:g}"]
        stem = out / _file_name(
            audio.stem, chosen, operation, Path(reference).stem, metric, *strength
        )
        for suffix in (".json", ".csv", ".html", ".png"):
            result.save(f"{stem}{suffix}")
        tables.append(result.top(top))
        console.print(
            f"clean {result.clean:.4f}, reference {result.reference:.4f}; wrote {stem}.*",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    show(_strongest(pd.concat(tables, ignore_index=True), top))


def _file_name(*parts: str) -> str:
    """A name that says what was patched, with what, and how it was measured."""
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def _strongest(rows: pd.DataFrame, top: int) -> Table:
    order = rows["change"].abs().sort_values(ascending=False, kind="stable").index
    numbers = [name for name in ("value", "change", "normalized") if name in rows]
    table = new_table("site", *(["token"] if "token" in rows else []), *numbers)
    for _, row in rows.loc[order].head(top).iterrows():
        words = [row["site"]]
        if "token" in rows:  # a site that is all positions at once has none
            words.append(repr(row["token"]) if isinstance(row["token"], str) else "")
        table.add_row(*map(escape, words), *(f"{row[name]:+.4f}" for name in numbers))
    return table
