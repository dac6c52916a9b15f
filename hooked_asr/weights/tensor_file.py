"""Tensors and what is said of them, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside

_KEY = "hooked_asr"
_FORMAT = 1
Error = type[HookedASRError]


def write_tensors(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    said: Mapping[str, Any],
    error: Error,
) -> None:
    """Write tensors, of a thing of this kind, with what is said of them (whatever JSON holds).

    Raises the `error` for another suffix than .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise error(f"a {kind} is saved as .safetensors; got {os.fspath(path)!r}")
    # A copy of each: a view would be written with all that it is a view of, or refused.
    own = {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}
    header = {"format": _FORMAT, "kind": kind, "digest": _digest(own), "said": said}
    with written_aside(path) as aside:
        aside.write_bytes(save(own, {_KEY: json.dumps(header)}))


def read_tensors(
    path: str | os.PathLike[str], kind: str, error: Error
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote of this kind.

    Raises the `error` for a file that is missing, damaged, or something else.
    """
    if not Path(path).is_file():
        raise error(f"there is no {kind} {os.fspath(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, digest, said = header["kind"], header["digest"], header["said"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as cause:
        raise error(
            f"{path} holds no {kind}, or a damaged one ({cause!r}): make it again, or take another "
            "copy of the file"
        ) from cause
    if found != kind:
        raise error(f"{path} holds a {found}; asked for a {kind}")
    if digest != _digest(tensors):
        raise error(
            f"{path} is damaged: its numbers are not those that were saved. Make it again, or take "
            "another copy of the file"
        )
    return tensors, said


def _digest(tensors: Mapping[str, Tensor]) -> str:
    made = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        made.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        made.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
