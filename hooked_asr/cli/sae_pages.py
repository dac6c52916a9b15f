"""`hooked-asr sae pages`: features to look at and to listen to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.options import Device, Dtype, FloatType, Model, load, progress
from hooked_asr.cli.sae_read import numbers
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.pages.pages import feature_pages
from hooked_asr.sae.reading.reading import FeatureReading


def pages(
    reading: Annotated[
        Path, typer.Argument(help="A reading, as sae read writes it.", show_default=False)
    ],
    model: Model,
    sae: Annotated[
        Path | None,
        typer.Option(
            help="The autoencoder that was read: of the decoder's stream, tokens are told too."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Only some features, as in 3,17,512.", show_default="all active ones"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Excerpts of each feature.")] = 8,
    audio: Annotated[bool, typer.Option(help="Whether excerpts can be played.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("pages"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Write a page for each feature, and index.html, which lists, sorts and searches them.

    A page holds its sounds and pictures, and opens without a network.
    """
    hooked = load(model, device, dtype)
    index = feature_pages(
        FeatureReading.load(reading),
        hooked,
        None if sae is None else SparseAutoencoder.load(sae, hooked),
        out=out,
        features=numbers(features),
        top=top,
        audio=audio,
        progress=progress(),
    )
    say(f"wrote {index}")
