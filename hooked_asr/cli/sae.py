"""`hooked-asr sae`: sparse autoencoders, from training to steering."""

from __future__ import annotations

import typer

from hooked_asr.cli.sae_attribute import attribute
from hooked_asr.cli.sae_measure import measure
from hooked_asr.cli.sae_pages import pages
from hooked_asr.cli.sae_read import read
from hooked_asr.cli.sae_steer import steer
from hooked_asr.cli.sae_train import train

sae = typer.Typer(
    help="Train sparse autoencoders, read their features, listen to them, steer by them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
sae.command()(train)
sae.command()(measure)
sae.command()(read)
sae.command()(pages)
sae.command()(steer)
sae.command()(attribute)
