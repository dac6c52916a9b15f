"""A hooked model against the Hugging Face model it reimplements, layer by layer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.shapes import Mel, Tokens
from hooked_asr.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Comparison:
    """One tensor of both models.

    `largest` is the largest absolute difference, `scale` the reference's largest absolute value.
    """

    name: str
    largest: float
    scale: float
    bit_equal: bool


@torch.no_grad()
def validate(model: Any, hf_model: Any, mel: Mel, tokens: Tokens) -> list[Comparison]:
    """Run both models on the same input, and compare every layer's parts and the logits.

    `hf_model` is what `transformers` itself loaded, so that nothing of this library is taken for
    granted.
    """
    pairs = _pairs(model)
    theirs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, path in pairs.items():
            module = hf_model.get_submodule(path)
            handle = module.register_forward_hook(_keep(theirs, name))
            stack.callback(handle.remove)
        reference = hf_model(mel, decoder_input_ids=tokens).logits
    logits, ours = model.run_with_cache(mel, tokens, names_filter=list(pairs))
    rows = [_compare(name, ours[name], theirs[name]) for name in pairs]
    return [*rows, _compare("logits", logits, reference)]


def load_reference(model: Any, device: str, dtype: torch.dtype) -> Any:
    """The same checkpoint, as `transformers` loads it, with its fused attention."""
    reference = model.source.hf_model.from_pretrained(
        Checkpoint(model.name).location, dtype=dtype, attn_implementation="sdpa"
    )
    return reference.to(device).eval()


def random_inputs(model: Any, n_pos: int = 8, seed: int = 0) -> tuple[Mel, Tokens]:
    """Log-mel noise and random tokens that fit the model; exactness does not depend on sense."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    mel = torch.randn(1, config.front_end.n_mels, config.n_frames, generator=generator)
    tokens = torch.randint(config.d_vocab, (1, n_pos), generator=generator)
    return mel.to(model.device, model.dtype), tokens.to(model.device)


def _pairs(model: Any) -> dict[str, str]:
    """Hook names, and the Hugging Face modules whose output they hold."""

    def theirs(module: str) -> str:
        return "model." + model.source.key(f"{module}.weight").removesuffix(".weight")

    pairs = {f"{conv}.hook_pre": theirs(conv) for conv in ("conv1", "conv2")}
    for stack in ("encoder", "decoder"):
        for i in range(model.config.stack(stack).n_layers):
            block = f"{stack}.{i}"
            pairs[f"{block}.hook_attn_out"] = theirs(f"{block}.attn.o_proj")
            if stack == "decoder":
                pairs[f"{block}.hook_cross_attn_out"] = theirs(f"{block}.cross_attn.o_proj")
            pairs[f"{block}.hook_mlp_out"] = theirs(f"{block}.mlp.fc_out")
            pairs[f"{block}.hook_resid_post"] = theirs(f"{block}.ln1").rpartition(".")[0]
        if stack == "encoder":
            pairs["hook_encoder_out"] = theirs("encoder_final_ln")
    return pairs


def _keep(kept: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _compare(name: str, ours: Tensor, theirs: Tensor) -> Comparison:
    if name.startswith("conv"):  # theirs has channels first
        theirs = theirs.mT
    difference = (ours.float() - theirs.float()).abs().max()
    return Comparison(
        name, float(difference), float(theirs.float().abs().max()), torch.equal(ours, theirs)
    )
