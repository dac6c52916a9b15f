"""What a decoding gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from hooked_asr.cache import ActivationCache
from hooked_asr.generation.steps import GenerationError
from hooked_asr.shapes import Tokens
from hooked_asr.speech import Word


@dataclass(frozen=True)
class Generated:
    """What was said to one prompt: its text, and the new token ids without the end token.

    `text` is empty where the model has no tokenizer.
    """

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Segment:
    """A stretch of a transcript.

    - `start`, `end`: seconds from the beginning of the recording.
    - `tokens`: with the time stamps around them; `words` where they were asked for.
    - `avg_logprob` (nats), `no_speech_prob`, `compression_ratio`, `temperature`: of the window in
      which it was decoded (see `Transcript`).
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float | None
    compression_ratio: float
    temperature: float
    words: list[Word] | None = None


@dataclass(frozen=True)
class Transcript(Generated):
    """What was heard in one recording.

    - `tokens`: of all segments, time stamps included; `segments`: with their times; `words`: with
      theirs, where they were asked for.
    - `language`: its code, told or found.
    - `avg_logprob`: mean log-probability of a token (nats), end tokens included.
    - `no_speech_prob`: that nobody speaks in the first window; None where the model has no token
      for it.
    - `compression_ratio`: bytes of the token ids over bytes when compressed: above 1.35, say, it
      repeats itself.
    - `temperature`: at which the last window was decoded.
    """

    language: str
    segments: list[Segment]
    avg_logprob: float
    no_speech_prob: float | None
    compression_ratio: float
    temperature: float
    words: list[Word] | None = None


@dataclass(frozen=True, eq=False)
class Window:
    """One window of some recordings, as it was decoded.

    - `clips`: which recordings, row by row; `start`: from where in each (s).
    - `whole_tokens` `[row pos]`: prompt and tokens, ended rows padded behind.
    - `cache`: the activations asked for, per-step ones joined along positions; None without.
    """

    clips: list[int]
    start: list[float]
    whole_tokens: Tokens
    cache: ActivationCache | None = None


Said = TypeVar("Said", bound=Generated)


@dataclass(frozen=True, eq=False)
class Generation(Sequence[Said]):
    """What a decoding gave, one entry for each recording or prompt, and its windows."""

    said: list[Said]
    windows: list[Window] = field(repr=False)

    def __len__(self) -> int:
        return len(self.said)

    @overload
    def __getitem__(self, index: int) -> Said: ...
    @overload
    def __getitem__(self, index: slice) -> list[Said]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.said[index]

    def __iter__(self) -> Iterator[Said]:
        return iter(self.said)

    @property
    def cache(self) -> ActivationCache:
        """The activations of a decoding that took one window, as one teacher-forced run gives them.

        Raises `GenerationError` where none were asked for, or there were several windows, each
        with a cache of its own.
        """
        cache = self._only_window().cache
        if cache is None:
            raise GenerationError("no activations were kept: say which, as in names_filter='*'")
        return cache

    @property
    def whole_tokens(self) -> Tokens:
        """Prompt and tokens of each row `[clip pos]`, ended rows padded behind."""
        return self._only_window().whole_tokens

    def _only_window(self) -> Window:
        if len(self.windows) != 1:
            raise GenerationError(
                f"this decoding took {len(self.windows)} windows: each of .windows has its own"
            )
        return self.windows[0]
