"""`hooked-asr transcribe`: what a recogniser hears, also with parts of it switched off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hooked_asr import interventions
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    Prompt,
    asked,
    load,
    progress,
)


def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Recordings of up to 30 s.")],
    model: Model,
    language: Language = None,
    task: Annotated[
        str | None,
        typer.Option(help="transcribe, or translate (into English).", show_default="transcribe"),
    ] = None,
    prompt: Prompt = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(help="Set a site to zero, as in decoder.2.cross_attn.5; may be given again."),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Transcribe recordings, greedily."""
    hooked = load(model, device, dtype)
    asks = asked(hooked, language=language, task=task, prompt=prompt)
    hooks = [interventions.zero(site) for site in ablate or []]
    for path in audio:
        text = hooked.transcribe(path, **asks, fwd_hooks=hooks, progress=progress())
        Console().print(
            f"{path.name}: {text}" if len(audio) > 1 else text, markup=False, soft_wrap=True
        )
