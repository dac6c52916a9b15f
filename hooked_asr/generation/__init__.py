"""Decoding: token after token on cached keys and values, hooks alive at every step."""

from hooked_asr.generation.loop import Decoded, Row, decode_rows, greedy
from hooked_asr.generation.options import DecodingOptions
from hooked_asr.generation.recordings import Transcription
from hooked_asr.generation.result import Generated, Generation, Segment, Transcript, Window
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors
from hooked_asr.generation.sampling import seeded
from hooked_asr.generation.steps import GenerationError, Steps

__all__ = [
    "Decoded",
    "DecodingOptions",
    "Generated",
    "Generation",
    "GenerationError",
    "PromptShape",
    "Row",
    "Segment",
    "Steps",
    "Transcript",
    "Transcription",
    "Window",
    "decode_rows",
    "end_tokens",
    "greedy",
    "logits_processors",
    "seeded",
]
