"""`hooked-asr lens attention`: which heads follow the sound, and where they look."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
import typer

from hooked_asr import lenses
from hooked_asr.cli.lens_options import OUT, Audio, Out, Text, run_of, save_all, say
from hooked_asr.cli.lens_tables import plain_table, show_whole
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    OptionError,
    Prompt,
    load,
    progress,
)
from hooked_asr.lenses import CrossAttentionLens
from hooked_asr.viz.figure import save as save_figure

_RANKED = ("alignment", "monotonicity", "entropy")


def attention(
    audio: Audio,
    model: Model,
    text: Text = None,
    language: Language = None,
    prompt: Prompt = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="A head to draw a map of, as in 2.4 (layer 2, head 4); may be given again.",
            show_default="the one that follows the sound best",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many heads to print.")] = 10,
    out: Out = OUT,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """See where in the sound each head of the decoder looks, token by token.

    Heads that follow the sound best come first. `share` of a head's attention goes to the clip;
    `monotonicity` is 1 where later tokens look at later moments.
    """
    asked_heads = [_head(one) for one in head or []]
    hooked = load(model, device, dtype)
    run = run_of(hooked, audio, text, language, prompt)
    durations = None if hooked.config.prefix else run.seconds
    found = lenses.cross_attention_lens(
        hooked,
        run.inputs,
        durations=durations,
        n_prompt=run.n_prompt,
        pos_slice=slice(run.n_prompt - 1, None),
        progress=progress(),
    )
    table = _ranked(found)
    show_whole(plain_table(table.head(top)))
    stem = out / f"{audio.stem}-attention"
    save_all(found, stem)
    best = [(int(table["layer"].iloc[0]), int(table["head"].iloc[0]))]
    for layer, number in asked_heads or best:
        figure = found.plot(layer, number)
        for suffix in (".html", ".png"):
            save_figure(figure, stem.with_name(f"{stem.name}-{layer}.{number}{suffix}"))
        say(f"wrote {stem}-{layer}.{number}.*")


def _head(written: str) -> tuple[int, int]:
    layer, _, head = written.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise OptionError(f"a head is a layer and a head in it, as in 2.4; got --head {written}")
    return int(layer), int(head)


def _ranked(lens: CrossAttentionLens) -> pd.DataFrame:
    """Heads that follow the sound best first, by the first measure that there is."""
    table = lens.heads_table()
    known = [name for name in _RANKED if table[name].notna().any()]
    if not known:
        return table
    return table.sort_values(known[0], ascending=known[0] == "entropy", kind="stable")
