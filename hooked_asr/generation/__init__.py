"""Decoding: token after token on cached keys and values, hooks alive at every step."""

from hooked_asr.generation.loop import GenerationError, greedy
from hooked_asr.generation.result import Generated
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors

__all__ = [
    "Generated",
    "GenerationError",
    "PromptShape",
    "end_tokens",
    "greedy",
    "logits_processors",
]
