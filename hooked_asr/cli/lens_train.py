"""`hooked-asr lens train`: a lens that is learned, for `lens tuned` and `lens encoder`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr import lenses
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
from hooked_asr.files import written_aside
from hooked_asr.viz.figure import save as save_figure

_SUFFIX = ".safetensors"


class Stack(str, Enum):
    """The stacks that have lenses."""

    decoder = "decoder"
    encoder = "encoder"


Clips = Annotated[
    Path,
    typer.Argument(
        help="A folder of recordings, or a manifest: a CSV or JSONL file of audio and, where "
        "wanted, text, language, group, id; seen from its folder.",
        show_default=False,
    ),
]


def train(
    clips: Clips,
    model: Model,
    lens: Annotated[Path, typer.Option("--lens", help="The file to write (.safetensors).")] = Path(
        "lens.safetensors"
    ),
    stack: Annotated[Stack, typer.Option(help="Whose streams to translate.")] = Stack.decoder,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of training; 0 for least squares alone.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Clips of a step.")] = None,
    language: Language = None,
    prompt: Prompt = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out clips that cannot be read, and say so.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what is held out, and of the order.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Train a tuned lens on recordings, each forced with its text or what the model hears.

    Stopped at any moment, it goes on where it was. A table says how far each layer is from what the
    model ends with (KL, nats) on clips that were held out, without and with the lens.
    """
    if lens.suffix != _SUFFIX:
        raise OptionError(f"a lens is a file {_SUFFIX}; got --lens {lens}")
    hooked = load(model, device, dtype)
    asks: dict[str, Any] = asked(hooked, language=language, prompt=prompt)
    wished = {"steps": steps, "batch_size": batch_size}
    asks |= {name: value for name, value in wished.items() if value is not None}
    made = lenses.train_tuned_lens(
        hooked,
        clips,
        stack=stack.value,
        out=lens.with_suffix(".training"),
        skip_unreadable=skip_errors,
        seed=seed,
        progress=progress(),
        **asks,
    )
    made.save(lens)
    say(f"wrote {lens}")
    if made.held_out.empty:
        return
    show_whole(plain_table(made.held_out))
    with written_aside(lens.with_suffix(".csv")) as aside:
        made.held_out.to_csv(aside, index=False)
    for suffix in (".html", ".png"):
        save_figure(made.plot(), lens.with_suffix(suffix))
    say(f"wrote {lens.with_suffix('')}.csv, .html, .png")
