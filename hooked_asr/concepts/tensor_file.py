"""Tensors and what is said of them, in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hooked_asr.concepts.errors import ConceptError
from hooked_asr.files import written_aside

_KEY = "hooked_asr.concepts"
_FORMAT = 1


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], said: Mapping[str, Any]
) -> None:
    """Write tensors, of a thing of this kind, with what is said of them.

    Raises `ConceptError` for another suffix than .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise ConceptError(f"a {kind} is saved as .safetensors; got {os.fspath(path)!r}")
    # A copy of each: a view would be written with all that it is a view of, or refused.
    own = {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}
    header = json.dumps({"format": _FORMAT, "kind": kind, "said": said})
    with written_aside(path) as aside:
        aside.write_bytes(save(own, {_KEY: header}))


def read_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote of this kind.

    Raises `ConceptError` for a file that is missing, damaged, or something else.
    """
    if not Path(path).is_file():
        raise ConceptError(f"there is no {kind} {os.fspath(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, said = header["kind"], header["said"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConceptError(f"{path} holds no {kind}, or a damaged one: {error!r}") from error
    if found != kind:
        raise ConceptError(f"{path} holds a {found}; asked for a {kind}")
    return tensors, said
