"""The MLP of a block."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hooked_asr.config import ConfigError, StackConfig
from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Resid


class MLP(nn.Module):
    """`W_out(activation(W_in(x)))`. Hooks: `hook_pre`, `hook_post` `[batch pos d_mlp]`."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        if stack.activation not in ACT2FN:
            raise ConfigError(
                f"no activation {stack.activation!r}; there are {', '.join(sorted(ACT2FN))}"
            )
        self.fc_in = nn.Linear(stack.d_model, stack.d_mlp)
        self.fc_out = nn.Linear(stack.d_mlp, stack.d_model)
        self.activation = ACT2FN[stack.activation]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Resid) -> Resid:
        pre = self.hook_pre(self.fc_in(x))
        out: Resid = self.fc_out(self.hook_post(self.activation(pre)))
        return out

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.fc_in.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.fc_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return self.fc_in.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return self.fc_out.bias
