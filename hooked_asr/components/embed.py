"""Tokens and positions into vectors, and vectors into logits."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Audio, Logits, Resid


class PositionEmbedding(nn.Module):
    """One vector for each position."""

    def __init__(self, n_ctx: int, d_model: int, trained: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_ctx, d_model), requires_grad=trained)

    def forward(self, position_ids: Int[Tensor, "*rows pos"]) -> Float[Tensor, "*rows pos d_model"]:
        return F.embedding(position_ids, self.weight)


class Projector(nn.Linear):
    """From the encoder's width to the decoder's. Hook: `hook_out` `[clip pooled d_model]`."""

    def __init__(self, d_enc: int, d_model: int) -> None:
        super().__init__(d_enc, d_model)
        self.hook_out = HookPoint()

    def forward(self, x: Audio) -> Resid:
        out: Resid = self.hook_out(super().forward(x))
        return out


class Unembed(nn.Linear):
    """Logits. Hook: `hook_out` `[batch pos d_vocab]`."""

    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__(d_model, d_vocab, bias=False)
        self.hook_out = HookPoint()

    def forward(self, x: Resid) -> Logits:
        logits: Logits = self.hook_out(super().forward(x))
        return logits


def sinusoids(n_ctx: int, d_model: int, max_timescale: float = 10_000) -> Tensor:
    """Whisper's encoder positions `[audio d_enc]`: sines, then cosines, of rising wavelength.

    Source: "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 2.2.

    Raises `ValueError` for an odd width.
    """
    if d_model % 2:
        raise ValueError(f"sinusoids need an even width, got {d_model}")
    step = math.log(max_timescale) / (d_model // 2 - 1)
    rates = torch.exp(-step * torch.arange(d_model // 2))
    angles = torch.arange(n_ctx)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
