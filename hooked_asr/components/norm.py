"""Normalisation that shows its scale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_asr.config import StackConfig
from hooked_asr.hooks import HookPoint, fused_unless_edited

Stream = Float[Tensor, "*axes d_model"]
Scale = Float[Tensor, "*axes 1"]


class Norm(nn.Module):
    """`centred(x) / scale * weight + bias`.

    Hooks: `hook_scale` `[batch pos 1]`; `hook_normalized` `[batch pos d_model]`, before weight and
    bias. Both are computed beside the fused norm while something watches, and replace it only where
    a hook function changed them.
    """

    bias: nn.Parameter | None

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.register_parameter("bias", None)
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
            explicit=lambda: self._affine(normalized),
        )

    def with_scale(self, x: Stream, scale: Scale) -> Stream:
        """The norm with its scale given and without its bias: linear in `x`."""
        return self._centred(x) / scale * self.weight.to(x.device, x.dtype)

    def _fused(self, x: Stream) -> Stream:
        raise NotImplementedError

    def _centred(self, x: Stream) -> Stream:
        raise NotImplementedError

    def _affine(self, normalized: Stream) -> Stream:
        weighted = normalized * self.weight
        return weighted if self.bias is None else weighted + self.bias

    def _normalize(self, x: Stream) -> tuple[Stream, bool]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = self._centred(wide)
        exact_scale = (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        scale, scale_edited = self.hook_scale.watch(exact_scale.to(x.dtype))
        normalized, edited = self.hook_normalized.watch((centred / scale).to(x.dtype))
        return normalized, edited or scale_edited


class LayerNorm(Norm):
    """Centred on the mean; `scale = sqrt(variance + eps)`."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def _fused(self, x: Stream) -> Stream:
        return torch.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)

    def _centred(self, x: Stream) -> Stream:
        return x - x.mean(-1, keepdim=True)


class RMSNorm(Norm):
    """Not centred, and without a bias; `scale = sqrt(mean of squares + eps)`.

    Source: "Root Mean Square Layer Normalization" (2019), equation 4.
    """

    def _fused(self, x: Stream) -> Stream:
        # Operation by operation the reference's, which PyTorch's own kernel rounds otherwise.
        wide = x.float()
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normalized.to(x.dtype)

    def _centred(self, x: Stream) -> Stream:
        return x


def norm(stack: StackConfig) -> Norm:
    """The kind of norm that a stack has."""
    kind = RMSNorm if stack.rms_norm else LayerNorm
    return kind(stack.d_model, stack.norm_eps)
