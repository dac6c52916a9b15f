"""The MLP of a block."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hooked_asr.config import ConfigError, StackConfig
from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Resid


class MLP(nn.Module):
    """`W_out(activation(W_in(x)))`.

    Hooks: `hook_pre`, `hook_post` `[batch pos d_mlp]`; `hook_in` `[batch pos d_model]`, what it
    reads, behind the norm (lazy).
    """

    def __init__(self, stack: StackConfig, bias: bool = True) -> None:
        super().__init__()
        self.fc_in = nn.Linear(stack.d_model, stack.d_mlp, bias)
        self.fc_out = nn.Linear(stack.d_mlp, stack.d_model, bias)
        self.activation = _activation(stack.activation)
        self.hook_in = HookPoint()
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Resid) -> Resid:
        pre = self.hook_pre(self.fc_in(self.hook_in(x)))
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
        """Zeros where there is none."""
        return bias_of(self.fc_in)

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Zeros where there is none."""
        return bias_of(self.fc_out)


class GatedMLP(MLP):
    """`W_out(activation(W_gate(x)) * W_in(x))`, without biases.

    Hooks `[batch pos d_mlp]`: `hook_pre` (the gate before its activation), `hook_pre_linear` (what
    it lets through) and `hook_post` (their product).

    Source: "GLU Variants Improve Transformer" (2020), section 2.
    """

    def __init__(self, stack: StackConfig) -> None:
        super().__init__(stack, bias=False)
        self.fc_gate = nn.Linear(stack.d_model, stack.d_mlp, bias=False)
        self.hook_pre_linear = HookPoint()

    def forward(self, x: Resid) -> Resid:
        x = self.hook_in(x)
        pre = self.hook_pre(self.fc_gate(x))
        linear = self.hook_pre_linear(self.fc_in(x))
        out: Resid = self.fc_out(self.hook_post(self.activation(pre) * linear))
        return out

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.fc_gate.weight.T


def mlp(stack: StackConfig) -> MLP:
    """The kind of MLP that a stack has."""
    return GatedMLP(stack) if stack.gated_mlp else MLP(stack)


def bias_of(linear: nn.Linear) -> Float[Tensor, " d_out"]:
    """A linear map's bias; zeros where it has none."""
    bias: Tensor | None = linear.bias
    return linear.weight.new_zeros(linear.out_features) if bias is None else bias


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACT2FN:
        raise ConfigError(f"no activation {name!r}; there are {', '.join(sorted(ACT2FN))}")
    activation: Callable[[Tensor], Tensor] = ACT2FN[name]
    return activation
