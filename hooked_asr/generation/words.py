"""Words with their times, from the attention of the alignment heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from hooked_asr.generation.rules import end_tokens
from hooked_asr.generation.window import Heard
from hooked_asr.speech import Word, combine_into_words, token_times
from hooked_asr.timing import FRAMES


@dataclass(frozen=True)
class WordTimes:
    """What tells when the words of a window's row are spoken.

    - `n_prompt`: tokens before the row's own; `timestamps`: whether there are time stamps in it.
    - `n_frames`: real log-mel frames of the window; `offset`: where it begins (s).
    """

    n_prompt: int
    timestamps: bool
    n_frames: int
    offset: float

    def words(
        self, model: Any, heard: Heard, places: Sequence[int], language: str | None
    ) -> list[Word]:
        """The words among some of the row's tokens; time stamps are passed over."""
        specials = end_tokens(model.generation_config)
        row, logprobs = heard.row.tokens, heard.row.logprobs
        text = [i for i in places if not specials or row[i] < min(specials)]
        if not text:
            return []
        return combine_into_words(
            model.tokenizer,
            [row[i] for i in text],
            self._token_times(heard)[text] + self.offset,
            [math.exp(logprobs[i]) for i in text] if logprobs else None,
            language,
        )

    def _token_times(self, heard: Heard) -> Float64[Tensor, "token start_end"]:
        assert heard.patterns is not None  # kept wherever words are asked for
        rows = self.n_prompt + len(heard.row.tokens)
        times = token_times(
            heard.patterns[:, :rows],
            self.n_prompt,
            n_audio=max(1, self.n_frames // FRAMES["audio"]),
            # Time stamps begin with one for 0.00 s, which the prompt's last position predicts.
            prompt_row=not self.timestamps,
        )
        if len(times) < len(heard.row.tokens):  # no position was left to read the last one
            times = times[[*range(len(times)), -1]]
            times[-1, 0] = times[-1, 1]
        return times
