"""Options that several sub-commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import torch
import typer

from hooked_asr.models.whisper import HookedWhisper

Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint: a folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, …")]
Language = Annotated[
    str | None,
    typer.Option(help="Language spoken, as in de or german; told from the audio if not given."),
]


class FloatType(str, Enum):
    """Float types to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def torch(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


Dtype = Annotated[FloatType, typer.Option(help="Float type to compute in.")]


def load(model: str, device: str, dtype: FloatType) -> HookedWhisper:
    """The model that the options name."""
    return HookedWhisper.from_pretrained(model, device=device, dtype=dtype.torch)
