"""What the encoder lens is given: clips, layers, texts and options, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hooked_asr.lenses.errors import LensError

EMBED = "embed"
EACH = "each"


class EncoderLensError(LensError):
    """A lens on layers, clips or options that do not fit."""


def check_options(
    model: Any, language: str | None, asked: Mapping[str, Any], batch_size: int
) -> None:
    """Raises `EncoderLensError` for options that this model does not take."""
    known = list(model.asked_by)
    wrong = [name for name in asked if name not in known]
    if language is not None and "language" not in known:
        wrong.append("language")
    if wrong:
        raise EncoderLensError(
            f"{type(model).__name__} is asked by {' and '.join(known)}; got {', '.join(wrong)}"
        )
    if language not in (None, EACH) and not model.config.prefix:
        model.prompt(language)  # refused before any work
    if batch_size < 1:
        raise EncoderLensError(f"at least 1 layer is decoded at a time; batch_size={batch_size}")


def depths_of(model: Any, layers: Sequence[int | str] | None) -> list[int]:
    """How many of the encoder's layers are run, for each one asked for; the last is all of them.

    Raises `EncoderLensError` for a layer that is not there.
    """
    n_layers = model.config.encoder.n_layers
    known: dict[int | str, int] = {EMBED: 0}
    known |= {layer: layer + 1 for layer in range(n_layers)}
    asked = list(known) if layers is None else list(layers)
    wrong = [layer for layer in asked if layer not in known]
    if wrong:
        raise EncoderLensError(
            f"the encoder has layers 0 to {n_layers - 1}, and {EMBED!r} before them; asked for "
            f"{', '.join(map(repr, wrong))}"
        )
    return sorted({known[layer] for layer in asked} | {n_layers})


def label(depth: int) -> str:
    """What the place behind so many layers is called."""
    return str(depth - 1) if depth else EMBED


def clips_of(audio: Any) -> list[Any]:
    """Each clip by itself.

    Raises `EncoderLensError` where there are none.
    """
    if is_mel(audio):
        clips = list(audio.split(1))
    else:
        clips = list(audio) if isinstance(audio, list | tuple) else [audio]
    if not clips:
        raise EncoderLensError("there are no clips: give one, or a list of some")
    return clips


def texts_of(said: str | Sequence[str | None] | None, n_clips: int) -> list[str | None]:
    """What is said in each clip.

    Raises `EncoderLensError` where there are not as many texts.
    """
    if said is None:
        return [None] * n_clips
    texts: list[str | None] = [said] if isinstance(said, str) else list(said)
    if len(texts) != n_clips:
        raise EncoderLensError(
            f"{n_clips} clips take as many texts; got {len(texts)}: give what is said in each, in "
            "their order, and None where that is not known"
        )
    return texts


def is_mel(audio: Any) -> bool:
    """Whether this is log-mel frames `[clip n_mels frame]`, and not samples."""
    return isinstance(audio, Tensor) and audio.ndim == 3


def name_of(clip: Any, i: int) -> str:
    """A recording's file name, or its number."""
    return Path(clip).name if isinstance(clip, str | os.PathLike) else f"recording {i}"
