"""What a model takes: each check says what it was given, and what would do."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from hooked_asr.config import ModelConfig
from hooked_asr.errors import HookedASRError


class InputError(HookedASRError):
    """An input the model cannot take: what it was, what the model takes."""


def place(text: str | None, argument: str) -> tuple[str | None, int | None]:
    """A stack and a layer out of "encoder.2"."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(encoder|decoder)\.(\d+)", text)
    if match is None:
        raise InputError(
            f"{argument} is a stack and a layer, like 'encoder.2' or 'decoder.0'; got {text!r}"
        )
    return match[1], int(match[2])


def mel(frames: Tensor, config: ModelConfig) -> None:
    n_mels, n_frames = config.front_end.n_mels, config.n_frames
    if frames.ndim != 3 or frames.shape[1:] != (n_mels, n_frames):
        raise InputError(
            f"this model takes log-mel frames of shape [batch {n_mels} {n_frames}] "
            f"(batch, mel bins, frames); got {list(frames.shape)}. "
            "model.to_mel makes them from any recording"
        )
    if not frames.is_floating_point():
        raise InputError(f"log-mel frames are floats; got {frames.dtype}")


def mel_mask(mask: Tensor, config: ModelConfig, n_clips: int) -> None:
    if tuple(mask.shape) != (n_clips, config.n_frames):
        raise InputError(
            f"mel_mask must be {[n_clips, config.n_frames]} (clip, frame); got {list(mask.shape)}"
        )
    if _runs_from(mask) != (True, 1):
        raise InputError("mel_mask is 1 for a clip's frames, and 0 for the padding behind them")


def tokens(ids: Tensor, config: ModelConfig, offset: int) -> None:
    d_vocab, n_ctx = config.d_vocab, config.decoder.n_ctx
    if ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] == 0:
        raise InputError(
            "tokens are integers of shape [batch pos], at least one of them; got "
            f"{ids.dtype} of shape {list(ids.shape)}"
        )
    if offset + ids.shape[1] > n_ctx:
        raise InputError(
            f"the decoder has {n_ctx} positions; got {offset + ids.shape[1]} tokens: "
            "give a shorter text"
        )
    low, high = torch.aminmax(ids)
    if low < 0 or high >= d_vocab:
        wrong = int(low if low < 0 else high)
        raise InputError(f"tokens are 0 to {d_vocab - 1}; got {wrong}")


def attention_mask(mask: Tensor, batch: int, n_pos: int) -> None:
    if tuple(mask.shape) != (batch, n_pos):
        raise InputError(
            f"attention_mask must be {[batch, n_pos]} (batch, all positions so far); "
            f"got {list(mask.shape)}"
        )
    if _runs_from(mask)[1] != 1:
        raise InputError(
            "each row of attention_mask is one run of 1, the tokens, with 0 before or behind it"
        )


def position_ids(ids: Tensor, rows: Tensor) -> None:
    batch, n_pos = rows.shape[:2]
    if tuple(ids.shape) not in ((batch, n_pos), (1, n_pos)):
        raise InputError(
            f"position_ids must be {[batch, n_pos]} (batch, pos), or one row for all; "
            f"got {list(ids.shape)}"
        )


def audio(encoded: Tensor | None, config: ModelConfig, batch: int) -> Tensor:
    expected = (batch, config.n_pooled, config.encoder.d_model)
    if encoded is None or tuple(encoded.shape) not in (expected, (1, *expected[1:])):
        raise InputError(
            f"for {batch} rows of tokens the encoder output must be {list(expected)} "
            f"(batch, audio, d_enc); got {'none' if encoded is None else list(encoded.shape)}"
        )
    return encoded


def _runs_from(mask: Tensor) -> tuple[bool, int]:
    """Whether every row begins with a 1, and how many runs of 1 each has (0 where they differ)."""
    real = mask.bool()
    rises = real[:, :1].long() + (real[:, 1:] & ~real[:, :-1]).sum(1, keepdim=True)
    runs = rises.unique().tolist()
    return bool(real[:, 0].all()), runs[0] if len(runs) == 1 else 0
