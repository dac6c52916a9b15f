"""`hooked-asr sae read`: what the features of a sparse autoencoder go with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.lens_tables import plain_table, show_whole
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
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.reading.feature import FeatureNote
from hooked_asr.sae.reading.read import read_features
from hooked_asr.sae.reading.reading import FeatureReading

_SHOWN = 6  # words, or phones, at a feature's peaks


def read(
    sae: Annotated[
        Path, typer.Argument(help="A sparse autoencoder: its folder.", show_default=False)
    ],
    clips: Annotated[
        Path,
        typer.Argument(
            help="A folder of recordings, or a manifest (CSV or JSONL).", metavar="CLIPS"
        ),
    ],
    model: Model,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="A column of labels; may be given again.",
            show_default="all that name classes",
        ),
    ] = None,
    phones: Annotated[
        str | None,
        typer.Option(
            help="Phones and their times: a column, or a JSON file of [label, start, end]."
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(help="Words and their times, likewise; or heard, the model's own (Whisper)."),
    ] = None,
    sounds: Annotated[
        str | None, typer.Option(help="Sounds that are not speech, and their times, likewise.")
    ] = None,
    lag: Annotated[
        float, typer.Option(help="How much later than a label features may count for it (s).")
    ] = 0.0,
    features: Annotated[
        str | None, typer.Option(help="Only some features, as in 3,17,512.", show_default="all")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Excerpts to keep of each feature.")] = 10,
    control: Annotated[
        Path | None,
        typer.Option(help="A reading to compare with: of a model with random weights."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Features to print.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the halves of the clips, and shuffled labels.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings at a time.")] = 8,
    language: Language = None,
    prompt: Prompt = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Note clips that cannot be read, and go on.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the reading and its tables.")] = Path(
        "reading"
    ),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Tell where each feature is active, and which words, phones and classes it goes with.

    F1 is of clips that neither threshold nor label was chosen on; beside it, F1 with shuffled
    labels, and with --control that of another model's features. `sae pages` shows and plays it.
    """
    hooked = load(model, device, dtype)
    given: dict[str, Any] = {"phones": phones, "words": words, "sounds": sounds, "labels": labels}
    given |= asked(hooked, prompt=prompt)
    reading = read_features(
        SparseAutoencoder.load(sae, hooked),
        hooked,
        clips,
        features=numbers(features),
        top=top,
        lag=lag,
        control=None if control is None else FeatureReading.load(control),
        seed=seed,
        batch_size=batch_size,
        language=language,
        skip_errors=skip_errors,
        progress=progress(),
        **given,
    )
    reading.save(out)
    _show(reading, rows)
    say(f"wrote {out}; hooked-asr sae pages {out} shows and plays it")


def numbers(said: str | None) -> list[int] | None:
    """Features as an option names them."""
    if said is None:
        return None
    try:
        return [int(one) for one in said.split(",")]
    except ValueError:
        raise OptionError(f"--features are numbers as in 3,17,512; got {said!r}") from None


def _show(reading: FeatureReading, rows: int) -> None:
    """The features that tell a label best, and how many do."""
    for clip, reason in reading.failed.items():
        say(f"left out: {clip}: {reason}")
    notes = [reading.note(number, 1) for number in reading.active]
    notes.sort(key=lambda one: 0.0 if one.best is None else -one.best.f1)
    show_whole(plain_table(_summary(notes[:rows], reading.control is not None)))
    for kind in reading.kinds:
        counts = reading.count(kind)
        beside = ", ".join(f"{n:g} {name}" for name, n in counts.items() if name != "features")
        say(f"{kind}: {counts['features']:g} features with F1 of 0.6 or more ({beside})")


def _summary(notes: list[FeatureNote], controlled: bool) -> pd.DataFrame:
    """A row for each feature: its best label, and what is at its peaks."""
    table: list[dict[str, Any]] = []
    for one in notes:
        best = one.best
        row: dict[str, Any] = {"feature": one.number, "density": one.density}
        scores = [float("nan")] * 3 if best is None else [best.f1, best.shuffled, best.random]
        row["label"] = "" if best is None else f"{best.kind} {best.label}"
        row |= dict(zip(("f1", "shuffled", "random"), scores, strict=True))
        kinds = dict.fromkeys(kind for at in one.excerpts for kind in at.under)
        row |= {f"{kind} at peaks": " ".join(one.under(kind)[:_SHOWN]) for kind in kinds}
        table.append(row)
    found = pd.DataFrame(table)
    texts = [name for name in found if name.endswith("at peaks")]
    found[texts] = found[texts].fillna("")
    return found if controlled else found.drop(columns="random", errors="ignore")
