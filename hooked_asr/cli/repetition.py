"""`hooked-asr repetition`: which components and heads end a loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hooked_asr import patching
from hooked_asr.cli.options import Device, Dtype, FloatType, Language, Model, load, progress
from hooked_asr.cli.tables import new_table, show
from hooked_asr.patching import HeardClip, RepetitionResult
from hooked_asr.speech.repetition import MIN_REPEATS

_LONGEST = 60  # characters of a text in a table


def repetition(
    audio: Annotated[list[Path], typer.Argument(help="Recordings; those that loop are studied.")],
    model: Model,
    operation: Annotated[
        str | None,
        typer.Option(
            help="zero, or replace by the reference.",
            show_default="zero; replace, where there is a reference",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="What is patched in: noise (as loud as the clip), silence, or a recording.",
            show_default="noise, in a replace",
        ),
    ] = None,
    reference_text: Annotated[
        list[str] | None,
        typer.Option(
            help="What is truly said, for word error rates, and to tell what people repeat from "
            "loops; once for each recording."
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="decoder.cross_attn (its heads), decoder (its components), encoder.mlp, …; may "
            "be given again.",
            show_default="components and heads of the decoder",
        ),
    ] = None,
    language: Language = None,
    min_repeats: Annotated[
        int, typer.Option(min=2, help="How often at least a loop says the same in a row.")
    ] = MIN_REPEATS,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens to decode: fewer are faster.", show_default="the model's own limit"
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many sites to print.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and heatmaps (HTML, PNG).")
    ] = Path("repetition"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Find the components and heads without which a loop ends.

    Each is switched off in turn, or patched, while a looping recording is decoded anew; ranked by
    how many recordings it mends: they loop no more, and are not empty.
    """
    # Before anything slow: a misspelt one should not cost the decoding.
    wishes = [patching.parse_sites(chosen) for chosen in sites or []]
    if operation == "replace" and reference is None:
        reference = "noise"
    hooked = load(model, device, dtype)
    for wish in wishes:
        wish.check(hooked.config)
    clips = patching.hear_clips(
        hooked,
        audio,
        said=reference_text or None,
        language=language,
        min_repeats=min_repeats,
        max_new_tokens=max_new_tokens,
        progress=progress(),
    )
    _show_clips(clips, min_repeats)
    if not any(clip.loop for clip in clips):
        return
    result = patching.repetition(
        hooked,
        clips,
        sites=wishes or None,
        operation=operation,
        reference=reference,
        min_repeats=min_repeats,
        language=language,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress(),
    )
    show(_ranked(result, top))
    stem = out / "-".join(["repetition", result.operation, *_stem(reference)])
    for suffix in (".json", ".csv", ".html", ".png"):
        result.save(f"{stem}{suffix}")
    Console().print(f"wrote {stem}.*", markup=False, highlight=False, soft_wrap=True)


def _show_clips(clips: Sequence[HeardClip], min_repeats: int) -> None:
    """The loops, then the recordings without one."""
    say = Console()
    looping = [clip for clip in clips if clip.loop]
    if looping:
        show(_loops(looping))
    for clip in clips:
        if not clip.loop:
            line = f"left out, no loop: {clip.name}: {_short(clip.text)}"
            say.print(line, markup=False, highlight=False, soft_wrap=True)
    if not looping:
        say.print(
            f"none of {len(clips)} recordings loops (says the same {min_repeats} times in a row): "
            "there is nothing to mend",
            highlight=False,
            soft_wrap=True,
        )
    say.print()


def _loops(looping: Sequence[HeardClip]) -> Table:
    table = new_table("recording", "loop", "times", "heard")
    for clip in looping:
        if clip.loop:
            words = clip.name, repr(clip.loop.unit), str(clip.loop.count), _short(clip.text)
            table.add_row(*map(escape, words))
    return table


def _ranked(result: RepetitionResult, top: int) -> Table:
    rows = result.top(top)
    numbers = ["wer"] if "wer" in rows else []
    table = new_table("site", "mended", "kept language", *numbers, "said instead")
    for _, row in rows.iterrows():
        table.add_row(
            row["site"],
            f"{row['mended']} of {row['of']}",
            str(row["kept_language"]),
            *(f"{row[name]:.2f}" if row["mended"] else "" for name in numbers),
            escape(_short(row["example"])),
        )
    return table


def _stem(reference: str | None) -> list[str]:
    return [] if reference is None else [Path(reference).stem]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
