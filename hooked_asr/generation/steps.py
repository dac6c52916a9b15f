"""The forward passes of one decoding: the prompt's, then one for each token behind it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.errors import HookedASRError
from hooked_asr.generation.replay import Replay
from hooked_asr.shapes import TokenMask, Tokens


class GenerationError(HookedASRError):
    """A way of decoding that the model has no room for, or that contradicts itself."""


class Beside:
    """What runs beside a decoding on the same tokens: here, nothing (see `lockstep`)."""

    def step(self, tokens: Tokens) -> AbstractContextManager[None]:
        """Run on the tokens so far, and be there to be read for the length of a block."""
        return nullcontext()

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows, in this order."""


class Steps:
    """Called with all tokens so far, gives the logits of those that are new.

    `inputs` are a forward's, with the encoder's output in place of the log-mel frames, and maybe
    `beside`, which begins what runs beside; `limit` is how many tokens there may be. Keys and
    values are kept in between. `model.clock.step` counts the passes, the prompt's being 0.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], limit: int) -> None:
        self._model = model
        self.mask = _real_mask(inputs.get("attention_mask"), model.device)
        # What the prompt alone reads, or what is kept of it ever after.
        self._heard = {
            name: value
            for name, value in inputs.items()
            if name not in ("tokens", "attention_mask", "beside")
        }
        self.past = KVCache(model.config.decoder.n_layers, capacity=limit)
        self._step = 0
        beside = inputs.get("beside")
        own = {name: value for name, value in inputs.items() if name != "beside"}
        self._beside: Beside = beside.begin(own, limit) if beside else Beside()

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch _ d_vocab"]:
        with self._model.clock.stepping(self._step), self._beside.step(tokens):
            logits = self._logits(tokens)
        self._step += 1
        return logits

    def _logits(self, tokens: Tokens) -> Float[Tensor, "batch _ d_vocab"]:
        past = self.past.length
        new = tokens[:, past:]
        if past and new.shape[1] == 1 and self.mask is None and self._replay.possible:
            return self._replay(new)
        padding: dict[str, Any] = {}
        if self.mask is not None:
            mask = _lengthened(self.mask, tokens.shape[1])
            padding = {"attention_mask": mask, "position_ids": _places(mask)[:, past:]}
        heard = {} if past else self._heard
        logits: Tensor = self._model.decode(new, past=self.past, **heard, **padding)
        return logits

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self._model, self.past)

    def reorder(self, rows: Int[Tensor, " row"], audio: bool = True) -> None:
        """Keep these rows, in this order; a row may come several times.

        `audio`: whether each takes its audio's keys and values along (see `LayerCache.reorder`).
        """
        self.past.reorder(rows, audio)
        if self.mask is not None:
            self.mask = self.mask[rows]
        self._beside.reorder(rows)

    @property
    def padding(self) -> Int[Tensor, " batch"] | None:
        """Positions at each row's beginning that are no tokens; None where there are none."""
        return None if self.mask is None else (self.mask == 0).sum(1)


def _real_mask(mask: TokenMask | None, device: torch.device) -> TokenMask | None:
    """None where nothing is masked."""
    if mask is None or mask.bool().all():
        return None
    if not mask[:, -1].all():
        raise GenerationError(
            "what is decoded comes behind the prompt: pad prompts on the left, not on the right"
        )
    return mask.to(device)


def _lengthened(mask: TokenMask, length: int) -> Shaped[Tensor, "batch pos"]:
    new = mask.new_ones(len(mask), length - mask.shape[1])
    return torch.cat([mask, new], dim=1)


def _places(mask: Shaped[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Each token's place in its own row, as the reference counts it while it decodes."""
    places = mask.long().cumsum(1) - 1
    return places.masked_fill(mask == 0, 0)
