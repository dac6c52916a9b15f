"""The convolutions between log-mel frames and the encoder."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.hooks import HookPoint

Channels = Float[Tensor, "batch d_in frame"]
Convolved = Float[Tensor, "batch d_enc audio"]


class Conv(nn.Conv1d):
    """A convolution over time, three frames wide, and its activation.

    Hook: `hook_pre`, before the activation, `[batch frame d_enc]` as everywhere. The arithmetic
    stays in the reference's layout, channels first: GELU rounds otherwise in another one.
    """

    def __init__(self, d_in: int, d_out: int, stride: int = 1) -> None:
        super().__init__(d_in, d_out, kernel_size=3, stride=stride, padding=1)
        self.hook_pre = HookPoint()

    def forward(self, x: Channels) -> Convolved:
        pre: Convolved = self.hook_pre(super().forward(x).mT).mT
        return F.gelu(pre)


class InnerConv(Conv):
    """A convolution whose activated output has a hook of its own, `hook_post`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.hook_post = HookPoint()

    def forward(self, x: Channels) -> Convolved:
        post: Convolved = self.hook_post(super().forward(x).mT).mT
        return post
