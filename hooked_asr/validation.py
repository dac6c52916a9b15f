"""A hooked model against the Hugging Face model it reimplements, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.timing import pooled_length
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
def validate(model: Any, hf_model: Any, inputs: Mapping[str, Tensor]) -> list[Comparison]:
    """Run both models on the same inputs, and compare every layer's parts and the logits.

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
        names = model.source.hf_inputs
        reference = hf_model(**{names[name]: value for name, value in inputs.items()}).logits
    logits, ours = model.run_with_cache(**inputs, names_filter=list(pairs))
    rows = [_compare(name, ours[name], theirs[name]) for name in pairs]
    return [*rows, _compare("logits", logits, reference)]


def load_reference(model: Any, device: str, dtype: torch.dtype) -> Any:
    """The same checkpoint, as `transformers` loads it, with its fused attention."""
    reference = model.source.hf_model.from_pretrained(
        Checkpoint(model.name).location, dtype=dtype, attn_implementation="sdpa"
    )
    return reference.to(device).eval()


def random_inputs(model: Any, n_text: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Log-mel noise and random tokens that fit the model; exactness does not depend on sense."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    mel = torch.randn(1, config.front_end.n_mels, config.n_frames, generator=generator)
    text = torch.randint(config.d_vocab, (1, n_text), generator=generator).to(model.device)
    inputs = {"mel": mel.to(model.device, model.dtype), "tokens": text}
    if config.prefix is None:
        return inputs
    # Three quarters of the window, so that the padding mask is at work too.
    n_frames = 3 * config.n_frames // 4
    mel_mask = torch.arange(config.n_frames)[None] < n_frames
    audio = torch.full((1, pooled_length(n_frames)), config.prefix.audio_token)
    text = text.where(text != config.prefix.audio_token, text.new_zeros(1))
    return {
        **inputs,
        "mel_mask": mel_mask.long().to(model.device),
        "tokens": torch.cat([text[:, :4], audio.to(model.device), text[:, 4:]], dim=1),
        "attention_mask": torch.ones_like(text[:, :1]).expand(1, n_text + audio.shape[1]),
    }


def _pairs(model: Any) -> dict[str, str]:
    """Hook names, and the Hugging Face modules whose output they hold."""

    def theirs(module: str) -> str:
        return "model." + model.source.key(f"{module}.weight").removesuffix(".weight")

    pairs = {f"{conv}.hook_pre": theirs(conv) for conv in ("conv1", "conv2")}
    for stack in ("encoder", "decoder"):
        for i in range(model.config.stack(stack).n_layers):
            block = f"{stack}.{i}"
            pairs[f"{block}.hook_attn_out"] = theirs(f"{block}.attn.o_proj")
            if f"{block}.hook_cross_attn_out" in model.hook_table:
                pairs[f"{block}.hook_cross_attn_out"] = theirs(f"{block}.cross_attn.o_proj")
            pairs[f"{block}.hook_mlp_out"] = theirs(f"{block}.mlp.fc_out")
            pairs[f"{block}.hook_resid_post"] = theirs(f"{block}.ln1").rpartition(".")[0]
        if stack == "encoder":
            pairs["hook_encoder_out"] = theirs("encoder_final_ln")
            if model.config.prefix:
                pairs["projector.hook_out"] = theirs("projector")
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
