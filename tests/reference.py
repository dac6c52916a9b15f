"""Hugging Face's activations, under the names of our hooks."""

from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def counterparts(hf: Any) -> dict[str, tuple[str, str]]:
    """For each of our hooks, the reference's module, and whether the tensor goes in or out."""
    rows = {
        "hook_mel": ("model.encoder.conv1", "in"),
        "conv1.hook_pre": ("model.encoder.conv1", "out"),
        "conv1.hook_post": ("model.encoder.conv2", "in"),
        "conv2.hook_pre": ("model.encoder.conv2", "out"),
        "hook_pos_embed": ("model.encoder.embed_positions", "out"),
        "hook_encoder_out": ("model.encoder.layer_norm", "out"),
        "hook_decoder_embed": ("model.decoder.embed_tokens", "out"),
        "hook_decoder_pos_embed": ("model.decoder.embed_positions", "out"),
        "unembed.hook_out": ("proj_out", "out"),
    }
    for stack in ("encoder", "decoder"):
        for i in range(len(getattr(hf.model, stack).layers)):
            rows |= _block(stack, f"{stack}.{i}", f"model.{stack}.layers.{i}")
    return rows


def _block(stack: str, ours: str, theirs: str) -> dict[str, tuple[str, str]]:
    after_attention = "final_layer_norm" if stack == "encoder" else "encoder_attn_layer_norm"
    rows = {
        "hook_resid_pre": ("self_attn_layer_norm", "in"),
        **_attention("attn", "self_attn"),
        "hook_attn_out": ("self_attn.out_proj", "out"),
        "hook_resid_mid": (after_attention, "in"),
        "mlp.hook_pre": ("fc1", "out"),
        "mlp.hook_post": ("fc2", "in"),
        "hook_mlp_out": ("fc2", "out"),
    }
    if stack == "decoder":
        rows |= _attention("cross_attn", "encoder_attn")
        rows["hook_cross_attn_out"] = ("encoder_attn.out_proj", "out")
        rows["hook_resid_mid_cross"] = ("final_layer_norm", "in")
    rows = {f"{ours}.{hook}": (f"{theirs}.{path}", side) for hook, (path, side) in rows.items()}
    return rows | {f"{ours}.hook_resid_post": (theirs, "out")}


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
    projections = {f"{ours}.hook_{x}": (f"{theirs}.{x}_proj", "out") for x in "qkv"}
    return projections | {f"{ours}.hook_z": (f"{theirs}.out_proj", "in")}


@contextmanager
def captured(hf: Any, retain_grad: bool = False) -> Any:
    """Within it, fills the dict it yields with each tensor that the reference computes."""
    tensors: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        tensors[name] = tensor
        if retain_grad and tensor.requires_grad:
            tensor.retain_grad()

    with ExitStack() as stack:
        for name, (path, side) in counterparts(hf).items():
            module = hf.get_submodule(path)
            if side == "in":
                handle = module.register_forward_pre_hook(lambda _, x, n=name: keep(n, x[0]))
            else:
                handle = module.register_forward_hook(lambda _, x, out, n=name: keep(n, out))
            stack.callback(handle.remove)
        yield tensors


def activations(hf: Any, mel: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Every activation that has a counterpart here, laid out as ours are, heads not yet apart."""
    with captured(hf) as tensors:
        hf(mel, decoder_input_ids=tokens)
    ours = {name: _our_layout(name, tensor) for name, tensor in tensors.items()}
    ours["hook_embed"] = F.gelu(tensors["conv2.hook_pre"]).mT
    positions = ours["hook_pos_embed"].expand_as(ours["hook_embed"])
    return ours | {"hook_pos_embed": positions}


def gradients(hf: Any, mel: Tensor, tokens: Tensor, loss: Any) -> dict[str, Tensor]:
    """The gradient of `loss(logits)` with respect to each activation that one reaches."""
    with captured(hf, retain_grad=True) as tensors:
        loss(hf(mel, decoder_input_ids=tokens).logits).backward()
    return {n: _our_layout(n, t.grad) for n, t in tensors.items() if t.grad is not None}


def _our_layout(name: str, tensor: Tensor) -> Tensor:
    return tensor.mT if name.startswith(("hook_mel", "conv")) else tensor
