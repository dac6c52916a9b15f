"""A name for a model's weights: another for any other weights, wherever they were loaded from."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def fingerprint(model: Any) -> str:
    """A hash of a model's configuration and of every weight, with its name and shape.

    Float types that hold a weight exactly hash alike: float16 weights, and these as float32. What
    was computed in one or the other is not the same, so `computed_with` names the type too.

    It reads all weights once: a second or two for each gigabyte.
    """
    made = hashlib.sha256(repr(model.config).encode())
    for name, weight in model.named_parameters():
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        made.update(f"{name} {wide.dtype} {list(wide.shape)}".encode())
        made.update(wide.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def computed_with(model: Any) -> dict[str, str]:
    """What numbers depend on that a model is asked for, as records keep it."""
    return {
        "weights (hash)": fingerprint(model),
        "float type": str(model.dtype).removeprefix("torch."),
        "device": torch.device(model.device).type,
    }
