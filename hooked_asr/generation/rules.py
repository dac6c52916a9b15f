"""A checkpoint's rules on what may be said: `transformers`' own processors, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    WhisperTimeStampLogitsProcessor,
)


@dataclass(frozen=True)
class PromptShape:
    """What rules have to know of a prompt.

    Its `length`, the `device` (by name), and how many positions of each row's beginning are
    `padding` (None for none).
    """

    length: int
    device: str
    padding: Tensor | None = None


# Fields of a generation config that change what is said, and the processor that each stands for,
# in the reference's order, made of the field's value, the whole config and the prompt.
_Maker = Callable[[Any, Any, PromptShape], LogitsProcessor]
_RULES: dict[str, _Maker] = {
    "repetition_penalty": lambda penalty, rules, prompt: RepetitionPenaltyLogitsProcessor(
        penalty, prompt.padding
    ),
    "no_repeat_ngram_size": lambda size, rules, prompt: NoRepeatNGramLogitsProcessor(size),
    "bad_words_ids": lambda ids, rules, prompt: NoBadWordsLogitsProcessor(ids, rules.eos_token_id),
    "min_new_tokens": lambda least, rules, prompt: MinNewTokensLengthLogitsProcessor(
        prompt.length, least, rules.eos_token_id, device=prompt.device
    ),
    "suppress_tokens": lambda ids, rules, prompt: _AskedOnce(
        SuppressTokensLogitsProcessor(ids, device=prompt.device)
    ),
    "begin_suppress_tokens": lambda ids, rules, prompt: _AskedOnce(
        SuppressTokensLogitsProcessor(ids, device=prompt.device), only_at=prompt.length
    ),
}
_SAMPLING_RULES: dict[str, _Maker] = {
    "top_k": lambda k, rules, prompt: TopKLogitsWarper(k),
    "top_p": lambda p, rules, prompt: TopPLogitsWarper(p),
}
# What the reference takes a field for that says nothing, and values at which it does nothing.
_UNSAID = {"top_k": 50}
_IDLE = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "top_k": 0,
    "top_p": 1.0,
}


class _AskedOnce(LogitsProcessor):
    """A processor that forbids the same tokens at each step, or `only_at` so many tokens.

    The reference finds them in the vocabulary anew for each token, which takes a third of
    whisper-tiny's time.
    """

    def __init__(self, processor: LogitsProcessor, only_at: int | None = None) -> None:
        self._processor, self._only_at = processor, only_at
        self._forbidden: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._only_at not in (None, input_ids.shape[-1]):
            return scores
        if self._forbidden is None:
            asked: Any = self._processor(input_ids, torch.zeros_like(scores[:1]))
            self._forbidden = asked.isneginf()
        return scores.masked_fill(self._forbidden, float("-inf"))


def logits_processors(
    rules: GenerationConfig,
    prompt: PromptShape,
    timestamps: bool = False,
    temperature: float = 0.0,
) -> LogitsProcessorList:
    """The checkpoint's rules on what may be said, in the reference's order.

    `timestamps`: also those on Whisper's time stamps; `temperature`: that of the distribution to
    draw from, and what else shapes it (0 for none of it).
    """
    processors = _of(_RULES, rules, prompt)
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(rules, prompt.length))
    if temperature:
        if temperature != 1.0:
            processors.append(TemperatureLogitsWarper(temperature))
        processors += _of(_SAMPLING_RULES, rules, prompt)
    return LogitsProcessorList(processors)


def _of(
    makers: Mapping[str, _Maker], rules: GenerationConfig, prompt: PromptShape
) -> list[LogitsProcessor]:
    processors = []
    for field, make in makers.items():
        value = getattr(rules, field, None)
        value = _UNSAID.get(field) if value is None else value
        if value is not None and value != _IDLE.get(field):
            processors.append(make(value, rules, prompt))
    return processors


def end_tokens(rules: GenerationConfig) -> list[int]:
    """The tokens that end a transcript; none where the checkpoint names none."""
    ends = rules.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def no_speech(
    model: Any, prompt_logits: Float[Tensor, "row _ d_vocab"], start: int
) -> list[float | None]:
    """The probability of the token for silence behind the start token, which is at `start`."""
    without_timestamps = getattr(model.generation_config, "no_timestamps_token_id", None)
    if without_timestamps is None:
        return [None] * len(prompt_logits)
    probabilities = prompt_logits[:, start].float().softmax(-1)
    return list(probabilities[:, without_timestamps - 1].tolist())
