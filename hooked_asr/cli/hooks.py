"""`hooked-asr hooks`: every hook of a model, with its shape."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from hooked_asr.cli.options import Model, OptionError
from hooked_asr.cli.tables import new_table, show
from hooked_asr.models.families import family_of
from hooked_asr.names import hook_table, select

_TEXT = 30


def hooks(
    model: Model,
    pattern: Annotated[
        str | None, typer.Argument(help="A glob: 'decoder.3.*'. Lazy hooks by their own name.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Rows of tokens (transcripts, prompts), for the shapes.")
    ] = 1,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of each row, for the shapes.",
            show_default=f"{_TEXT}, and those of whole windows of audio where a prompt holds them",
        ),
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Clips in all rows, where a prompt may hold several; for the shapes.",
            show_default="one in each row",
        ),
    ] = None,
) -> None:
    """List hook names with axes, shapes and sizes. Reads the config alone, no weights."""
    config = family_of(model).config_of(model)
    if clips and not config.prefix:
        raise OptionError("this model hears one clip for each row of tokens: leave out --clips")
    if tokens is None:
        heard = math.ceil((clips or batch) / batch) if config.prefix else 0
        tokens = _TEXT + heard * config.n_pooled
    specs = hook_table(config)
    table = new_table("hook", "axes", "shape", "MiB (float32)", "lazy")
    for name in select(pattern, specs) if pattern else specs:
        spec = specs[name]
        shape = spec.shape(config, batch, tokens, clips)
        mib = f"{4 * math.prod(shape) / 2**20:.2f}"
        table.add_row(
            name, " ".join(spec.axes), " ".join(map(str, shape)), mib, "†" if spec.lazy else ""
        )
    show(table)
