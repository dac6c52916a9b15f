"""Reading a checkpoint: a folder or a hub id; safetensors or an old pickle; one file or shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_asr.errors import HookedASRError

# In the order in which they are looked for; an index lists the shards.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Models that come with the package.
BUNDLED = {"whisper-nano": Path(__file__).parent.parent / "nano" / "checkpoint"}
_WINDOW = 16 * 2**20  # bytes of a file that are mapped at a time


class CheckpointError(HookedASRError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class Checkpoint:
    """The files of one checkpoint: bundled, in a folder, or on the hub (fetched when asked for).

    `hub` goes to `huggingface_hub.hf_hub_download`: `revision`, `cache_dir`, `token`, …
    """

    def __init__(self, name: str | os.PathLike[str], **hub: Any) -> None:
        self.name = os.fspath(name)
        folder = BUNDLED.get(self.name, Path(self.name))
        self.folder = folder if folder.is_dir() else None
        self.hub = hub
        if Path(self.name).is_file():
            raise CheckpointError(f"{self.name} is a file; give the folder it lies in")

    @property
    def location(self) -> Path | str:
        """What Hugging Face's own loaders find it by."""
        return self.folder or self.name

    def file(self, filename: str, required: bool = False) -> Path | None:
        """Where one of its files is, or None where it has none of that name.

        Raises `CheckpointError` where the hub refuses, or cannot be asked for a required file.
        """
        if self.folder:
            path = self.folder / filename
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.name, filename, **self.hub))
        except LocalEntryNotFoundError as error:  # no network, and not among the files kept here
            if required:
                raise CheckpointError(self._unreachable(filename)) from error
            return None
        except EntryNotFoundError:
            return None
        except (OfflineModeIsEnabled, OSError) as error:
            raise CheckpointError(self._refused(filename, error)) from error
        except HFValidationError as error:
            raise CheckpointError(
                f"{self.name!r} is no folder here, and no hub id (like 'openai/whisper-tiny.en') "
                "either"
            ) from error

    def config(self) -> dict[str, Any]:
        """The fields of its `config.json`.

        Raises `CheckpointError` where there is none, or it is not JSON.
        """
        path = self.file("config.json", required=True)
        if path is None:
            raise CheckpointError(f"{self.name} is no checkpoint: it has no config.json")
        return _json_object(path)

    def tensors(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, shard by shard, straight to `device`.

        Safetensors are memory-mapped: on the CPU nothing is copied. A pickle is read as plain
        tensors only, never as code.
        """
        for path in self._weight_files():
            yield from _safetensors(path, device) if _is_safe(path) else _pickle(path, device)

    def _weight_files(self) -> list[Path]:
        for filename in _WEIGHT_FILES:
            path = self.file(filename)
            if path is not None:
                return self._shards(path) if filename.endswith(".json") else [path]
        unless = "" if self.folder else ", or the hub could not be asked for them"
        raise CheckpointError(
            f"{self.name} holds no weights: none of {', '.join(_WEIGHT_FILES)} is there{unless}"
        )

    def _shards(self, index: Path) -> list[Path]:
        weight_map = _json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} is no index of shards: it has no 'weight_map'")
        names = sorted(set(weight_map.values()))
        paths = {name: self.file(name) for name in names}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise CheckpointError(f"{self.name} lacks shards that its index lists: {missing}")
        return [path for path in paths.values() if path is not None]

    def _refused(self, filename: str, error: Exception) -> str:
        if isinstance(error, GatedRepoError):
            return f"{self.name!r} is gated: ask for access on the hub, then run hf auth login"
        if isinstance(error, RevisionNotFoundError):
            return f"{self.name!r} has no revision {self.hub.get('revision')!r} on the hub"
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{self.name!r} is neither a folder here nor a model on the hub (or a private one: "
                "log in with hf auth login)"
            )
        if isinstance(error, HfHubHTTPError):
            return f"the hub refused {filename} of {self.name!r}: {error}"
        return self._unreachable(filename)

    def _unreachable(self, filename: str) -> str:
        return (
            f"{self.name!r} is no folder here, {filename} is not in the hub's local cache, and the "
            "hub cannot be reached. Check the name and the network, or give a folder; "
            f"{', '.join(BUNDLED)} needs neither"
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no fields, but a JSON {type(fields).__name__}")
    return fields


def _is_safe(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _safetensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
        while keys:
            # Mapped anew from time to time: pages of tensors that were converted, or went to
            # another device, are then no longer held.
            with safe_open(path, framework="pt", device=str(device)) as file:
                mapped = 0
                while keys and mapped < _WINDOW:
                    key = keys.pop(0)
                    tensor = file.get_tensor(key)
                    mapped += tensor.nbytes
                    yield key, tensor
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _pickle(path: Path, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files from before torch 1.6 are no zip, and cannot be mapped.
        mapped = is_zipfile(path)
        weights = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many types for a damaged or unsafe file
        raise CheckpointError(
            f"{path} cannot be read as plain tensors, and is not read any other way: {error}"
        ) from error
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} holds no tensors by name, but a {type(weights).__name__}")
    others = [name for name, weight in weights.items() if not isinstance(weight, Tensor)]
    if others:
        raise CheckpointError(f"{path} holds more than tensors: {', '.join(map(str, others[:5]))}")
    yield from weights.items()
