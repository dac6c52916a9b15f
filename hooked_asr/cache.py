"""Activations kept from one run, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_asr.files import written_aside
from hooked_asr.names import ShortName, UnknownHookError, resolve
from hooked_asr.residual import CacheError, ResidualStream

Positions = int | slice | None


class ActivationCache(ResidualStream):
    """A mapping from hook names to the activations of one run.

    `cache["decoder.3.cross_attn.hook_z"]`, or in short `cache["z", 3, "cross_attn"]`: the last part
    of a name, a layer, and words of the path until only one fits. Gradients, where they were kept,
    have `_grad` behind the name. The methods that take the residual stream apart are
    `residual.ResidualStream`'s; they need the model the cache came from.
    """

    def __init__(self, tensors: Mapping[str, Tensor], model: Any = None) -> None:
        self._tensors = dict(tensors)
        self.model = model

    def __getitem__(self, key: ShortName) -> Tensor:
        if isinstance(key, str) and key in self._tensors:
            return self._tensors[key]
        return self._tensors[self._resolve(key)]

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations, {self.nbytes / 2**20:.1f} MiB)"

    def _resolve(self, key: ShortName) -> str:
        try:
            return resolve(key, self._tensors)
        except UnknownHookError:
            if self.model is None:
                raise
        name = resolve(key, self.model.hook_table)
        lazy = ", and a lazy hook must be asked for" if self.model.hook_table[name].lazy else ""
        raise UnknownHookError(
            f"{name!r} was not kept: the run's names_filter left it out, or the run did not pass "
            f"there{lazy}. run_with_cache(…, names_filter=[{name!r}, …]) keeps it"
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the activations take; one that stands under two names counts once."""
        return sum({t.data_ptr(): t.nbytes for t in self._tensors.values()}.values())

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ActivationCache:
        """The same activations elsewhere, or as another float type."""
        moved = {name: t.to(device=device, dtype=dtype) for name, t in self._tensors.items()}
        return ActivationCache(moved, self.model)

    def remove_batch_dim(self) -> ActivationCache:
        """The cache of a single clip without its first axis.

        Raises `CacheError` for a cache of several clips.
        """
        several = {t.shape[0] for t in self._tensors.values()} - {1}
        if several:
            raise CacheError(
                f"the cache holds {max(several)} clips; only one has no need of an axis"
            )
        return ActivationCache({name: t[0] for name, t in self._tensors.items()}, self.model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the activations to one safetensors file."""
        separate, seen = {}, set()
        for name, tensor in self._tensors.items():
            # safetensors refuses two names over one memory: a stream that leaves one layer and
            # enters the next is such a pair.
            storage = tensor.untyped_storage().data_ptr()
            separate[name] = (
                tensor.clone(memory_format=torch.contiguous_format)
                if storage in seen
                else tensor.contiguous()
            )
            seen.add(storage)
        with written_aside(path) as aside:
            save_file(separate, aside, metadata={"format": "pt"})

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Any = None,
        device: torch.device | str = "cpu",
    ) -> ActivationCache:
        """Read what `save` wrote; `model` is needed only to take the residual stream apart.

        Raises `FileNotFoundError`, or `CacheError` for a file that is damaged or of another
        kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no saved activations at {path}")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CacheError(f"{path} holds no saved activations: {error}") from None
        if model is not None:  # the order of the forward, which the file does not keep
            order = [*model.hook_table, *(f"{name}_grad" for name in model.hook_table)]
            tensors = {name: tensors[name] for name in order if name in tensors} | tensors
        return cls(tensors, model)


class CacheRecorder:
    """Hook functions that keep what they see."""

    def __init__(
        self,
        positions: Mapping[str, Positions],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        copy: bool,
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._positions = positions
        self._device, self._dtype, self._copy = device, dtype, copy

    def keep(self, x: Tensor, hook: Any) -> None:
        self.tensors[hook.name] = self._trim(x.detach(), hook)

    def keep_gradient(self, grad: Tensor, hook: Any) -> None:
        self.tensors[f"{hook.name}_grad"] = self._trim(grad.detach(), hook)

    def _trim(self, x: Tensor, hook: Any) -> Tensor:
        where = self._positions.get(hook.spec.clock)
        trimmed = x if where is None else self._at(x, hook, where)
        kept = trimmed.to(device=self._device, dtype=self._dtype)
        # A slice would keep the whole tensor alive.
        return kept.clone() if kept is trimmed and (where is not None or self._copy) else kept

    @staticmethod
    def _at(x: Tensor, hook: Any, where: int | slice) -> Tensor:
        axis = hook.spec.position_axis
        if not isinstance(where, slice):
            if not -x.shape[axis] <= where < x.shape[axis]:
                raise IndexError(
                    f"no position {where} to keep of {hook.name!r}, which has {x.shape[axis]}"
                )
            where = slice(where, where + 1 or None)
        return x[(slice(None),) * axis + (where,)]
