"""`hooked-asr sae steer`: what transcripts become when features are changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    OptionError,
    Prompt,
    asked,
    load,
    progress,
)
from hooked_asr.cli.tables import new_table, show
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.steering.result import SteerSweep
from hooked_asr.sae.steering.steer import HOWS, steer_sweep


def steer(
    sae: Annotated[
        Path, typer.Argument(help="A sparse autoencoder, a folder.", show_default=False)
    ],
    clips: Annotated[
        Path,
        typer.Argument(
            help="A manifest (CSV or JSONL: audio, text, language, group), a folder of "
            "recordings, or one.",
            show_default=False,
        ),
    ],
    model: Model,
    features: Annotated[str, typer.Option(help="Their numbers, as in 12,40.", show_default=False)],
    how: Annotated[str, typer.Option(help=f"{', '.join(HOWS)}.")] = "clamp",
    strengths: Annotated[
        str | None,
        typer.Option(
            help="What features are set to (clamp), what is added, or by what they are scaled.",
            show_default="0,1,2,4,8; none to ablate",
        ),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All features as one set, not each by itself.")
    ] = False,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Where, as in 0,3; behind a decoder's 0 a Whisper tells the language.",
            show_default="everywhere",
        ),
    ] = None,
    towards: Annotated[
        str | None,
        typer.Option(help="A language (its code): how many clips are told as it, how surely."),
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits decoded at a time.")] = 64,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Note clips that cannot be read, and go on.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for transcripts, numbers, figure and report.")
    ] = Path("steering"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Decode recordings with features driven, scaled or taken out, and count what changes.

    A row for each feature (or set) and strength: shares of clips, with 95 % intervals, and word
    error rates. Results are kept in --out as they come: run again, it goes on where it was.
    """
    chosen = _numbers(features, "--features", int)
    sizes = None if strengths is None else _numbers(strengths, "--strengths", float)
    places = None if positions is None else _numbers(positions, "--positions", int)
    hooked = load(model, device, dtype)
    asks: dict[str, Any] = asked(hooked, language=language, prompt=prompt)
    sweep = steer_sweep(
        SparseAutoencoder.load(sae, hooked),
        hooked,
        clips,
        chosen,
        sizes,
        how,
        together=together,
        positions=places,
        batch_size=batch_size,
        skip_errors=skip_errors,
        out=out / "clips",
        progress=progress(),
        **asks,
    )
    for clip, reason in sweep.effect.failed.items():
        say(f"left out: {clip}: {reason}")
    _show(sweep, towards)
    for suffix in (".json", ".csv"):
        sweep.save(out / f"steering{suffix}")
    sweep.report(out / "steering.html", towards)
    say(f"wrote {out / 'steering'}.html, .json, .csv")


def _numbers(said: str, option: str, kind: type[Any]) -> list[Any]:
    try:
        return [kind(one) for one in said.split(",")]
    except ValueError:
        raise OptionError(f"{option} are numbers, as in 12,40; got {said!r}") from None


def _show(sweep: SteerSweep, towards: str | None) -> None:
    shares = {"changed": "text changed", "with_text": "with text"}
    shares |= (
        {"language_changed": "language changed"}
        if towards is None
        else {"identified": f"told as {towards}", "probability": f"probability of {towards}"}
    )
    table = new_table("edit", *shares.values(), "WER (before)")
    for row in sweep.to_pandas(towards).to_dict("records"):
        cells = [f"{row[one]:.3f} ({_ends(row, one)})" for one in shares]
        table.add_row(_named(row), *cells, f"{row['wer']:.3f} ({row['wer_before']:.3f})")
    show(table)


def _named(row: dict[Any, Any]) -> str:
    alone = pd.isna(row["strength"])
    return str(row["name"]) if alone else f"{row['name']}: {row['strength']:g}"


def _ends(row: dict[Any, Any], name: str) -> str:
    return f"{row[f'{name}_low']:.3f} – {row[f'{name}_high']:.3f}"
