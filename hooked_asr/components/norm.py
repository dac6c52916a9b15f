"""Layer normalisation that shows its scale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.hooks import HookPoint, fused_unless_edited

Stream = Float[Tensor, "*axes d_model"]


class LayerNorm(nn.Module):
    """`(x - mean) / scale * weight + bias`, with `scale = sqrt(var + eps)`.

    Hooks: `hook_scale` `[batch pos 1]`; `hook_normalized` `[batch pos d_model]`, before weight and
    bias. Both are computed beside the fused norm while something watches, and replace it only where
    a hook function changed them.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Stream) -> Stream:
        if not (self.hook_scale.active or self.hook_normalized.active):
            return self._fused(x)
        normalized, edited = self._normalize(x)
        return fused_unless_edited(
            normalized,
            edited,
            fused=lambda: self._fused(x),
            explicit=lambda: normalized * self.weight + self.bias,
        )

    def with_scale(self, x: Stream, scale: Float[Tensor, "*axes 1"]) -> Stream:
        """The norm with its scale given and without its bias: linear in `x`."""
        return (x - x.mean(-1, keepdim=True)) / scale * self.weight.to(x.device, x.dtype)

    def _fused(self, x: Stream) -> Stream:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)

    def _normalize(self, x: Stream) -> tuple[Stream, bool]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(-1, keepdim=True)
        exact_scale = (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        scale, scale_edited = self.hook_scale.watch(exact_scale.to(x.dtype))
        normalized, edited = self.hook_normalized.watch((centred / scale).to(x.dtype))
        return normalized, edited or scale_edited
