"""How a recording is to be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hooked_asr.generation.steps import GenerationError

# What a checkpoint's generation config may say too; a caller's word counts more.
_IN_RULES = (
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "condition_on_prev_tokens",
    "max_new_tokens",
)


@dataclass(frozen=True)
class DecodingOptions:
    """The options of `HookedWhisper.generate`, which tells what they mean."""

    task: str = "transcribe"
    timestamps: bool = False
    words: bool = False
    temperatures: tuple[float, ...] = (0.0,)
    num_beams: int = 1
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool | None = None
    prompt: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise GenerationError(
                f"temperatures are one or more numbers from 0 on; got {list(self.temperatures)}"
            )
        if self.num_beams < 1:
            raise GenerationError(f"num_beams is at least 1; got {self.num_beams}")
        if self.num_beams > 1 and self.temperatures[0] > 0:
            raise GenerationError(
                f"{self.num_beams} beams are for temperature 0, and the first one is "
                f"{self.temperatures[0]}: leave out num_beams, or begin at 0"
            )
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            raise GenerationError(
                "no_speech_threshold skips a window that is also unlikely: give logprob_threshold"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens is at least 1; got {self.max_new_tokens}")

    @classmethod
    def of(cls, rules: Any, temperature: float | Sequence[float], **given: Any) -> DecodingOptions:
        """The options that a caller gave, and those of the checkpoint's rules that stay open."""
        temperatures = tuple(temperature) if isinstance(temperature, Sequence) else (temperature,)
        said = {name: getattr(rules, name, None) for name in _IN_RULES}
        given |= {name: value for name, value in said.items() if given.get(name) is None}
        known = {field.name for field in fields(cls)}
        return cls(
            temperatures=tuple(map(float, temperatures)),
            **{name: value for name, value in given.items() if name in known},
        )
