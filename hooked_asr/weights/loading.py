"""Putting weights into a model, under its own names, without copying them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hooked_asr.weights.checkpoint import CheckpointError
from hooked_asr.weights.source import Source


def load_weights(
    model: Any,
    source: Source,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype | None,
) -> None:
    """Give `model` (which may lie on the meta device) these tensors as its weights.

    A tensor that already has the right type becomes the parameter itself.

    Raises `CheckpointError` that names every tensor that is missing, left over or of another shape.
    """
    wanted = {source.key(name): (name, p) for name, p in _parameters(model).items()}
    weights: dict[str, Tensor] = {}
    extra, misshapen = [], []
    again: dict[str, Tensor] = {}  # a tied unembedding may be stored too, as the embedding's equal
    for full_key, tensor in tensors:
        key = source.plain(full_key)
        if key not in wanted:
            if _tied(model) and _is_unembedding(key, source):
                again[full_key] = tensor
            else:
                extra.append(full_key)
            continue
        name, parameter = wanted[key]
        if tensor.shape != parameter.shape:
            misshapen.append(f"{full_key}: {list(tensor.shape)}, not {list(parameter.shape)}")
        weights[name] = tensor.to(dtype)
    missing = [key for key, (name, _) in wanted.items() if name not in weights]
    embedding = weights.get("embed.weight")
    unequal = [
        f"{key}, which the config ties to the embedding"
        for key, tensor in again.items()
        if embedding is not None and not torch.equal(tensor.to(dtype), embedding)
    ]
    _refuse(missing=missing, extra=extra, misshapen=misshapen, unequal=unequal)
    if _tied(model):
        weights["unembed.weight"] = weights["embed.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()


def to_hf_weights(model: Any, source: Source, hf_model: Any) -> None:
    """Give the Hugging Face model this model's weights: the same memory, not a copy."""
    theirs = {source.plain(key): key for key in hf_model.state_dict()}
    weights = {theirs[source.key(n)]: p.detach() for n, p in _parameters(model).items()}
    if _tied(model) and not getattr(hf_model, "_tied_weights_keys", None):
        # A class that ties nothing, whatever its config says, has to be given an equal.
        weights[theirs[source.key("unembed.weight")]] = model.embed.weight.detach().clone()
    hf_model.load_state_dict(weights, assign=True, strict=False)
    hf_model.tie_weights()
    _compute_buffers(hf_model, model.device)


def _compute_buffers(hf_model: Any, device: torch.device) -> None:
    """Give a model off the meta device what follows from its config, and is stored nowhere."""
    for module in hf_model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            fresh = type(module)(module.config)
            for name, buffer in fresh.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))


def _parameters(model: Any) -> dict[str, Tensor]:
    # named_parameters gives a tied unembedding once, as the embedding.
    return dict(model.named_parameters())


def _tied(model: Any) -> bool:
    return bool(model.config.tied_embeddings)


def _is_unembedding(key: str, source: Source) -> bool:
    return key == source.key("unembed.weight")


def _refuse(**faults: list[str]) -> None:
    said = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', …' if len(keys) > 5 else ''})"
        for kind, keys in faults.items()
        if keys
    ]
    if said:
        raise CheckpointError(f"the checkpoint does not fit its config: {'; '.join(said)}")
