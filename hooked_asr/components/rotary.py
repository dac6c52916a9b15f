"""Rotary positions: queries and keys turned by an angle that grows with their position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.shapes import Heads, Positions

Angles = Float[Tensor, "_ pos d_head"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation of each position; calling it turns heads `[batch pos head d_head]`."""

    cos: Angles
    sin: Angles

    def __call__(self, x: Heads) -> Heads:
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin


def rotation(positions: Positions, d_head: int, base: float, dtype: torch.dtype) -> Rotation:
    """The rotations of these positions, a row for each clip, or one for all.

    Source: "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.2.
    """
    # On the CPU, as the reference does it: another device may round these powers otherwise.
    rates = 1.0 / (base ** (torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head))
    angles = positions[..., None].float() * rates.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
