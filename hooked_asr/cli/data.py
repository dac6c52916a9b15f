"""`hooked-asr data`: data sets of synthetic speech, made by the call."""

from __future__ import annotations

import typer

from hooked_asr.cli.data_odd import code_switching, fragments, noises, repeated_words
from hooked_asr.cli.data_options import EXTRA
from hooked_asr.cli.data_speech import minimal_pairs, semantic_categories, sentences

data = typer.Typer(
    help="Make data sets of synthetic speech: recordings, a manifest, and when what is said. "
    "What was stopped goes on when it is asked for again. " + EXTRA,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
data.command()(sentences)
data.command()(minimal_pairs)
data.command()(semantic_categories)
data.command()(repeated_words)
data.command()(code_switching)
data.command()(fragments)
data.command()(noises)
