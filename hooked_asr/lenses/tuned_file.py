"""A tuned lens as a file: its tensors, and what they were trained on and how."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hooked_asr.files import written_aside
from hooked_asr.lenses.errors import LensError
from hooked_asr.weights.fingerprint import fingerprint

_KEY = "hooked_asr.tuned_lens"
_FORMAT = 1
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class LensOrigin:
    """What a lens was trained for, and how.

    - `model`: its name; `weights`: what `weights_id` gives for it, "" for no model's in particular.
    - `stack`, `n_layers`, `d_model`: whose streams it reads.
    - `settings`: of the training. `versions`: of what it ran on.
    - `held_out`: the rows of `TunedLens.held_out`.
    """

    model: str
    stack: str
    n_layers: int
    d_model: int
    weights: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    held_out: list[dict[str, Any]] = field(default_factory=list)


def weights_id(model: Any) -> str:
    """A hash of a model's weights: the same for float16 ones, and for these widened to float32."""
    return fingerprint(_Widened(model))


class _Widened:
    """A model's weights as float32 at least, one at a time."""

    def __init__(self, model: Any) -> None:
        self.config, self._model = model.config, model

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._model.named_parameters():
            yield name, weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def write_lens(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], of: LensOrigin) -> None:
    """Write a lens as safetensors.

    Raises `LensError` for another suffix.
    """
    if Path(path).suffix != ".safetensors":
        raise LensError(f"a tuned lens is saved as .safetensors; got {os.fspath(path)!r}")
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    said = {"format": _FORMAT, "digest": _digest(own), "origin": asdict(of)}
    with written_aside(path) as aside:
        aside.write_bytes(save(own, {_KEY: json.dumps(said)}))


def read_lens(path: str | os.PathLike[str]) -> tuple[Tensors, LensOrigin]:
    """What `write_lens` wrote.

    Raises `LensError` for a file that is missing, damaged, or something else.
    """
    if not Path(path).is_file():
        raise LensError(f"there is no tuned lens {os.fspath(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})[_KEY])
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        origin, digest = LensOrigin(**said["origin"]), said["digest"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise LensError(
            f"{path} holds no tuned lens, or a damaged one ({error!r}): train it again, or take "
            "another copy of the file"
        ) from error
    if _digest(tensors) != digest:
        raise LensError(
            f"{path} is damaged: its numbers are not those that were saved. Train the lens again, "
            "or take another copy of the file"
        )
    return tensors, origin


def _digest(tensors: Mapping[str, Tensor]) -> str:
    made = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        made.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        made.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
