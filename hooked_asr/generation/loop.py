"""The decoding loop: cached keys and values, hooks alive at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.errors import HookedASRError
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors
from hooked_asr.shapes import TokenMask, Tokens


class GenerationError(HookedASRError):
    """A way of decoding that the model has no room for."""


def greedy(
    model: Any, inputs: Mapping[str, Any], limit: int | None = None, progress: bool = False
) -> list[list[int]]:
    """The likeliest token at each step, by the checkpoint's own rules; new tokens of each row.

    `inputs` are a forward's (`tokens` the prompt), with the encoder's output in place of the
    log-mel frames. Decoding ends at an end token, which is left out, or when prompt and text
    together have `limit` tokens (by default, as many as the checkpoint allows).

    Raises `GenerationError` for a prompt that fills the limit, or is padded behind its tokens.
    """
    prompt = inputs["tokens"].to(model.device)
    mask = _real_mask(inputs.get("attention_mask"), model.device)
    limit = model.token_limit(prompt.shape[1]) if limit is None else limit
    _check_room(model, prompt.shape[1], limit)
    processors = _processors(model.generation_config, prompt, mask)
    ends = torch.tensor(end_tokens(model.generation_config), device=prompt.device)
    steps = _Steps(model, inputs, mask, limit)
    tokens, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    with tqdm(
        total=limit - prompt.shape[1], unit="token", disable=not progress, leave=False
    ) as bar:
        while tokens.shape[1] < limit and not ended.all():
            logits = steps(tokens)[:, -1]
            scores: Float[Tensor, "batch d_vocab"] = processors(tokens, logits.float())
            new = scores.argmax(-1)
            # A row that has ended runs on beside the others; what it says is dropped below.
            ended |= torch.isin(new, ends)
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            bar.update()
    return [_until(row, set(ends.tolist())) for row in tokens[:, prompt.shape[1] :].tolist()]


class _Steps:
    """Logits of what is new since the last call: the prompt, then one token after the other."""

    def __init__(
        self, model: Any, inputs: Mapping[str, Any], mask: TokenMask | None, limit: int
    ) -> None:
        self._model, self._mask = model, mask
        self._first = {
            name: value
            for name, value in inputs.items()
            if name not in ("tokens", "attention_mask")
        }
        self._past = KVCache(model.config.decoder.n_layers, capacity=limit)

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch _ d_vocab"]:
        past = self._past.length
        # What the prompt alone reads, or what is kept of it ever after.
        heard = {} if past else self._first
        padding: dict[str, Any] = {}
        if self._mask is not None:
            mask = _lengthened(self._mask, tokens.shape[1])
            padding = {"attention_mask": mask, "position_ids": _places(mask)[:, past:]}
        logits: Tensor = self._model.decode(tokens[:, past:], past=self._past, **heard, **padding)
        return logits


def _processors(rules: Any, prompt: Tokens, mask: TokenMask | None) -> LogitsProcessorList:
    padding = None if mask is None else (mask == 0).sum(1)
    return logits_processors(rules, PromptShape(prompt.shape[1], str(prompt.device), padding))


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


def _check_room(model: Any, n_prompt: int, limit: int) -> None:
    n_ctx: int = model.config.decoder.n_ctx
    if not n_prompt < limit <= n_ctx:
        raise GenerationError(
            f"the limit counts the {n_prompt} tokens of the prompt too, and the decoder has "
            f"{n_ctx} positions; got {limit}"
        )


def _until(row: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[:end]
