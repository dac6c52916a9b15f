"""Options that several sub-commands share."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import torch
import typer

from hooked_asr.errors import HookedASRError
from hooked_asr.models.families import from_pretrained
from hooked_asr.models.recogniser import Recogniser

Model = Annotated[
    str, typer.Option("--model", "-m", help="A checkpoint: a folder, a hub id, or whisper-nano.")
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, …")]
Language = Annotated[
    str | None,
    typer.Option(help="Language spoken, as in de or german; told from the audio if not given."),
]


class DeviceError(HookedASRError):
    """A device that is not there."""


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


Prompt = Annotated[
    str | None,
    typer.Option(help="How a model that is asked in words (Qwen2-Audio) is asked."),
]


class OptionError(HookedASRError):
    """An option that the model has no use for."""


def load(model: str, device: str, dtype: FloatType) -> Recogniser:
    """The model that the options name."""
    check_device(device)
    return from_pretrained(model, device=device, dtype=dtype.torch)


def asked(model: Recogniser, **options: str | None) -> dict[str, str]:
    """How the model is asked, of the options that were given.

    Raises `OptionError` for one that this kind of model is not asked by.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in model.asked_by:
            raise OptionError(
                f"{type(model).__name__} is not asked by --{name}, but by "
                + " and ".join(f"--{known}" for known in model.asked_by)
            )
    return given


def check_device(device: str) -> None:
    """Raises `DeviceError` for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DeviceError(f"cannot run on {device!r}: {reason}") from error


def progress() -> bool:
    """Whether to show progress bars: not where something other than a person reads along."""
    return sys.stderr.isatty()
