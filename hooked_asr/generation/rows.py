"""Many interventions on one recording, decoded as one batch.

A row whose intervention acts on each position by itself is first checked: one pass over the
untouched transcript tells where, if anywhere, the row would have said something else. Only from
there on is it decoded, on the keys and values that the pass left. The recording is encoded once,
and its cross-attention keys and values are shared by all rows that do not touch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.generation.loop import Row, allowed
from hooked_asr.generation.row_hooks import RowHooks
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors, no_speech
from hooked_asr.shapes import Audio

_WORTH_MOVING = 0.75  # of the rows at most still going, before those that ended are dropped


@dataclass(eq=False)
class _Reading:
    """One row on its way: what it has said, how likely that was, and whether it has ended."""

    row: int
    tokens: list[int]
    logprobs: list[float]
    ended: bool = False

    def say(self, token: int, logprob: float, ends: set[int]) -> None:
        self.logprobs.append(logprob)
        if token in ends:
            self.ended = True
        else:
            self.tokens.append(token)

    def finished(self) -> Row:
        return Row(self.tokens, self.ended, fmean(self.logprobs), tuple(self.logprobs))


class RowsDecoder:
    """Decodes rows that share a prompt (but perhaps not its language) and a limit, greedily.

    `hooks` are all rows'; `timestamps`: whether Whisper's rules on time stamps hold; `no_speech`:
    the probability of silence of each row so far, by `n_init`, how many tokens of the prompt there
    are from the start token on.
    """

    def __init__(
        self, model: Any, hooks: RowHooks, limit: int, timestamps: bool, n_init: int
    ) -> None:
        self.model, self.hooks, self.limit, self.timestamps = model, hooks, limit, timestamps
        self.no_speech: dict[int, float | None] = {}
        self._n_init = n_init
        self._ends = set(end_tokens(model.generation_config))

    def decode(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        audio: Audio,
        untouched: Row | None = None,
        progress: bool = False,
    ) -> list[Row]:
        """What each row says; `audio` is one encoder output for all, or one for each.

        `untouched`: what is said without any intervention behind the same prompt, to check the
        rows against; None where they act otherwise on a whole text than on its tokens.
        """
        expected = [] if untouched is None else list(untouched.tokens)
        past = KVCache(self.model.config.decoder.n_layers, self.limit)
        read = torch.tensor([[*prompt, *expected] for prompt in prompts], device=self.model.device)
        n_prompt = len(prompts[0])
        processors = self._processors(read[:, :n_prompt])
        readings = [_Reading(row, [], []) for row in rows]
        self.hooks.rows = list(rows)
        resid = self.model.decode(
            read, audio, past=past, stop_at=self.model.config.decoder.n_layers
        )
        start = n_prompt - self._n_init
        silence = no_speech(self.model, self._logits(resid, start), 0)
        self.no_speech |= dict(zip(rows, silence, strict=True))
        self._check(readings, read, resid, n_prompt, processors)
        self._go_on(readings, read, past, n_prompt, processors, progress)
        return [reading.finished() for reading in readings]

    def _processors(self, prompt: Int[Tensor, "row pos"]) -> LogitsProcessorList:
        shape = PromptShape(prompt.shape[1], str(prompt.device))
        return logits_processors(self.model.generation_config, shape, self.timestamps)

    # --- What agrees with the untouched transcript ------------------------------------------------

    def _check(
        self,
        readings: list[_Reading],
        read: Int[Tensor, "row pos"],
        resid: Float[Tensor, "row pos d_model"],
        n_prompt: int,
        processors: LogitsProcessorList,
    ) -> None:
        """Let each row say what it says at every position, up to where that was not expected."""
        agreeing = list(range(len(readings)))
        for position in range(n_prompt - 1, min(read.shape[1], self.limit - 1)):
            said = self._said(readings, agreeing, read, resid, position, processors)
            expected = read[agreeing, position + 1].tolist() if position + 1 < read.shape[1] else []
            agreeing = [
                place
                for place, token, foreseen in zip(agreeing, said, expected, strict=False)
                if token == foreseen
            ]
            if not agreeing:
                return

    def _said(
        self,
        readings: list[_Reading],
        places: list[int],
        read: Int[Tensor, "row pos"],
        resid: Float[Tensor, "row pos d_model"],
        position: int,
        processors: LogitsProcessorList,
    ) -> list[int]:
        self.hooks.rows = [readings[place].row for place in places]
        logits = self._logits(resid[places], position)[:, -1]
        tokens, logprobs = _likeliest(logits, read[places, : position + 1], processors)
        for place, token, logprob in zip(places, tokens, logprobs, strict=True):
            readings[place].say(token, logprob, self._ends)
        return tokens

    def _logits(
        self, resid: Float[Tensor, "row pos d_model"], position: int
    ) -> Float[Tensor, "row one d_vocab"]:
        with self.model.clock.at(position):
            here = resid[:, position : position + 1]
            logits: Tensor = self.model.unembed(self.model.decoder_final_ln(here))
        return logits

    # --- What does not ----------------------------------------------------------------------------

    def _go_on(
        self,
        readings: list[_Reading],
        read: Int[Tensor, "row pos"],
        past: KVCache,
        n_prompt: int,
        processors: LogitsProcessorList,
        progress: bool,
    ) -> None:
        """Decode what is not over yet; a row joins where its own words begin."""
        going = [i for i, one in enumerate(readings) if self._goes_on(one, n_prompt)]
        going.sort(key=lambda i: len(readings[i].tokens))
        if not going:
            return
        past.reorder(torch.tensor(going, device=read.device))
        live = [readings[i] for i in going]
        prompts = read[going, :n_prompt].tolist()
        said = [[*prompt, *one.tokens] for prompt, one in zip(prompts, live, strict=True)]
        position = len(said[0]) - 1
        with tqdm(
            total=self.limit - position, unit="token", disable=not progress, leave=False
        ) as bar:
            while position < self.limit - 1 and live:
                here = sum(len(row) <= position + 1 for row in said)
                self._step(
                    live[:here], said[:here], past.view(here, position), n_prompt, processors
                )
                position += 1
                bar.update()
                live, said = self._without_ended(live, said, past, position)
                if live and len(said[0]) > position + 1:  # the next row joins later
                    position = len(said[0]) - 1

    def _goes_on(self, reading: _Reading, n_prompt: int) -> bool:
        return not reading.ended and n_prompt + len(reading.tokens) < self.limit

    def _step(
        self,
        live: list[_Reading],
        said: list[list[int]],
        past: KVCache,
        n_prompt: int,
        processors: LogitsProcessorList,
    ) -> None:
        self.hooks.rows = [one.row for one in live]
        tokens = torch.tensor(said, device=self.model.device)
        with self.model.clock.stepping(past.length - n_prompt + 1):
            logits = self.model.decode(tokens[:, past.length :], past=past)[:, -1]
        new, logprobs = _likeliest(logits, tokens, processors)
        for one, row, token, logprob in zip(live, said, new, logprobs, strict=True):
            if not one.ended:
                one.say(token, logprob, self._ends)
            row.append(token)

    def _without_ended(
        self, live: list[_Reading], said: list[list[int]], past: KVCache, position: int
    ) -> tuple[list[_Reading], list[list[int]]]:
        """Rows that have ended leave the batch: not one by one, since all that stay must move."""
        going = [i for i, one in enumerate(live) if not one.ended]
        reading_now = any(len(said[i]) == position + 1 for i in going)
        if reading_now and len(going) > _WORTH_MOVING * len(live):
            return live, said
        past.reorder(torch.tensor(going, dtype=torch.long, device=self.model.device))
        return [live[i] for i in going], [said[i] for i in going]


def _likeliest(
    logits: Float[Tensor, "row d_vocab"],
    tokens: Int[Tensor, "row _"],
    processors: LogitsProcessorList,
) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability under the rules."""
    scores = allowed(processors, tokens, logits)
    new = scores.argmax(-1)
    logprobs = scores.gather(1, new[:, None])[:, 0] - scores.logsumexp(-1)
    return new.tolist(), logprobs.tolist()
