"""`hooked-asr lens`: what the streams inside a model already say."""

from __future__ import annotations

import typer

from hooked_asr.cli.lens_attention import attention
from hooked_asr.cli.lens_clip import encoder, logit, tuned
from hooked_asr.cli.lens_corpus import corpus
from hooked_asr.cli.lens_train import train

lens = typer.Typer(
    help="Read what the streams inside a model already say, layer by layer.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
for command in (logit, encoder, tuned, train, corpus, attention):
    lens.command()(command)
