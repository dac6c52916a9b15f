"""A checkpoint's rules on what may be said: `transformers`' own processors, from its config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
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
# in the reference's order.
_Maker = Callable[[Any, PromptShape], LogitsProcessor]
_RULES: dict[str, _Maker] = {
    "repetition_penalty": lambda rules, prompt: RepetitionPenaltyLogitsProcessor(
        rules.repetition_penalty, prompt.padding
    ),
    "no_repeat_ngram_size": lambda rules, prompt: NoRepeatNGramLogitsProcessor(
        rules.no_repeat_ngram_size
    ),
    "bad_words_ids": lambda rules, prompt: NoBadWordsLogitsProcessor(
        rules.bad_words_ids, rules.eos_token_id
    ),
    "min_new_tokens": lambda rules, prompt: MinNewTokensLengthLogitsProcessor(
        prompt.length, rules.min_new_tokens, rules.eos_token_id, device=prompt.device
    ),
    "suppress_tokens": lambda rules, prompt: SuppressTokensLogitsProcessor(
        rules.suppress_tokens, device=prompt.device
    ),
    "begin_suppress_tokens": lambda rules, prompt: SuppressTokensAtBeginLogitsProcessor(
        rules.begin_suppress_tokens, prompt.length, device=prompt.device
    ),
}
_SAMPLING_RULES: dict[str, _Maker] = {
    "temperature": lambda rules, prompt: TemperatureLogitsWarper(rules.temperature),
    "top_k": lambda rules, prompt: TopKLogitsWarper(rules.top_k),
    "top_p": lambda rules, prompt: TopPLogitsWarper(rules.top_p),
}
# What these fields say when they say nothing.
_IDLE = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
}


def logits_processors(
    rules: GenerationConfig, prompt: PromptShape, sampling: bool = False
) -> LogitsProcessorList:
    """The checkpoint's rules on what may be said, in the reference's order.

    `sampling`: also what shapes the distribution to draw from.
    """
    makers = _RULES | (_SAMPLING_RULES if sampling else {})
    return LogitsProcessorList(
        make(rules, prompt)
        for field, make in makers.items()
        if getattr(rules, field, None) not in (None, _IDLE.get(field))
    )


def end_tokens(rules: GenerationConfig) -> list[int]:
    """The tokens that end a transcript; none where the checkpoint names none."""
    ends = rules.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
