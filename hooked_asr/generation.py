"""The decoding loop: cached keys and values, hooks alive at every step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.errors import HookedASRError
from hooked_asr.shapes import Audio, Tokens


class GenerationError(HookedASRError):
    """A way of decoding that the model has no room for."""


def greedy(
    model: Any,
    audio: Audio,
    prompt: Tokens,
    max_length: int | None = None,
    progress: bool = False,
) -> list[list[int]]:
    """The likeliest token at each step, by the checkpoint's own rules; new tokens of each row.

    `audio` is the encoder's output. Decoding ends at an end token, which is left out, or when
    prompt and text together have `max_length` tokens (by default, the checkpoint's limit).

    Raises `GenerationError` for a `max_length` that the decoder has no positions for, or that the
    prompt already fills.
    """
    rules = model.generation_config
    limit = _limit(model, prompt.shape[1], max_length)
    processors: Any = logits_processors(rules, begin=prompt.shape[1], device=str(prompt.device))
    ends = torch.tensor(end_tokens(rules), device=prompt.device)
    past = KVCache(model.config.decoder.n_layers, capacity=limit)
    tokens, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    with tqdm(
        total=limit - prompt.shape[1], unit="token", disable=not progress, leave=False
    ) as bar:
        while tokens.shape[1] < limit and not ended.all():
            logits = model.decode(tokens[:, past.length :], audio, past=past)
            scores: Float[Tensor, "batch d_vocab"] = processors(tokens, logits[:, -1].float())
            new = scores.argmax(-1)
            # A row that has ended runs on beside the others; what it says is dropped below.
            ended |= torch.isin(new, ends)
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            bar.update()
    return [_until(row, set(ends.tolist())) for row in tokens[:, prompt.shape[1] :].tolist()]


def _limit(model: Any, n_prompt: int, max_length: int | None) -> int:
    n_ctx: int = model.config.decoder.n_ctx
    if max_length is None:
        # As in the reference, whose own limit does not count the prompt.
        allowed = model.generation_config.max_length or n_ctx
        return min(allowed + min(n_prompt, n_ctx // 2 - 1), n_ctx)
    if not n_prompt < max_length <= n_ctx:
        raise GenerationError(
            f"max_length counts the {n_prompt} tokens of the prompt too, and the decoder has "
            f"{n_ctx} positions; got {max_length}"
        )
    return max_length


def logits_processors(rules: GenerationConfig, begin: int, device: str) -> LogitsProcessorList:
    """The checkpoint's rules on what may be said, in the reference's order."""
    processors = LogitsProcessorList()
    if rules.begin_suppress_tokens is not None:
        processors.append(
            SuppressTokensAtBeginLogitsProcessor(rules.begin_suppress_tokens, begin, device=device)
        )
    if rules.suppress_tokens is not None:
        processors.append(SuppressTokensLogitsProcessor(rules.suppress_tokens, device=device))
    return processors


def end_tokens(rules: GenerationConfig) -> list[int]:
    """The tokens that end a transcript; none where the checkpoint names none."""
    ends = rules.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _until(row: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[:end]
