"""`hooked-asr validate`: a checkpoint here against the same one in `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from hooked_asr.cli.options import Device, Dtype, FloatType, load
from hooked_asr.cli.tables import new_table, show
from hooked_asr.validation import load_reference, random_inputs
from hooked_asr.validation import validate as compare


def validate(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder, or a hub id.")],
    audio: Annotated[
        Path | None, typer.Argument(help="A recording to compare on; noise if not given.")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Compare every layer and the logits with the Hugging Face model's; fails where bits differ."""
    hooked = load(model, device, dtype)
    inputs = random_inputs(hooked)
    if audio:
        inputs["mel"] = hooked.to_mel(audio)
    rows = compare(hooked, load_reference(hooked, device, dtype.torch), inputs)
    table = new_table("tensor", "largest difference", "largest value", "bit-equal")
    for row in rows:
        table.add_row(
            row.name, f"{row.largest:.3g}", f"{row.scale:.3g}", "yes" if row.bit_equal else "no"
        )
    show(table)
    unequal = [row.name for row in rows if not row.bit_equal]
    Console().print(
        f"{len(rows) - len(unequal)} of {len(rows)} tensors bit-equal "
        f"(torch {torch.__version__}, {dtype.value}, {device})"
    )
    if unequal:
        raise typer.Exit(1)
