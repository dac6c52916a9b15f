"""A name for a model's weights: another for any other weights, wherever they were loaded from."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def fingerprint(model: Any) -> str:
    """A hash of a model's configuration and of every weight, with its name, type and shape.

    It reads all weights once: a second for each gigabyte or so.
    """
    made = hashlib.sha256(repr(model.config).encode())
    for name, weight in model.named_parameters():
        made.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        made.update(content.numpy().data)
    return made.hexdigest()
