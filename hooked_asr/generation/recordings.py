"""Recordings of any length, window after window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.cache import ActivationCache
from hooked_asr.generation.lockstep import encoding_beside
from hooked_asr.generation.options import DecodingOptions
from hooked_asr.generation.recorder import StepRecorder
from hooked_asr.generation.recording import Recording
from hooked_asr.generation.references import ReferenceRecordings
from hooked_asr.generation.result import Segment, Window
from hooked_asr.generation.rules import end_tokens
from hooked_asr.generation.segments import Cut, cut
from hooked_asr.generation.steps import GenerationError
from hooked_asr.generation.window import DecodedWindow, Heard, Watched, decode_window
from hooked_asr.generation.words import WordTimes
from hooked_asr.timing import FRAMES_PER_SECOND

# Below it, what was heard is thought good enough to be told to the next window.
_SURE_TEMPERATURE = 0.5


class Transcription:
    """The decoding of some recordings together.

    The windows of all that are not done yet are decoded as one batch; each recording moves on by
    its own time stamps. `references` are decoded beside them.
    """

    def __init__(
        self,
        model: Any,
        recordings: list[Recording],
        options: DecodingOptions,
        watched: Watched,
        references: Sequence[ReferenceRecordings] = (),
    ) -> None:
        self.model, self.recordings, self.options = model, recordings, options
        self.watched, self.references = watched, references
        self.windows: list[Window] = []
        rules, n_ctx = model.generation_config, model.config.decoder.n_ctx
        self._max_length = rules.max_length or n_ctx
        self.first_timestamp = first_timestamp(rules, model.config.d_vocab)
        for recording in recordings:
            recording.conditioned = bool(options.condition_on_prev_tokens)
            if options.prompt:
                recording.cuts.append(Cut(0.0, 0.0, list(options.prompt[1:])))
        for reference in references:
            reference.check(recordings, options)

    def run(self, progress: bool = False) -> None:
        """Decode to the end of every recording."""
        total = sum(recording.n_frames for recording in self.recordings) / FRAMES_PER_SECOND
        several = any(r.n_frames > self.model.config.n_frames for r in self.recordings)
        with tqdm(total=total, unit="s", disable=not (progress and several), leave=False) as bar:
            while active := [one for one in self.recordings if not one.done]:
                before = sum(one.seek for one in active)
                self._next_window(active, progress and not several)
                bar.update((sum(one.seek for one in active) - before) / FRAMES_PER_SECOND)

    def _next_window(self, active: list[Recording], progress: bool) -> None:
        model, recorder = self.model, StepRecorder()
        names, n_frames = list(self.watched.names), model.config.n_frames
        theirs = [(one.reference, one.windows(active, n_frames)) for one in self.references]
        with encoding_beside(theirs) as beside, model.hooks([(names, recorder)] if names else []):
            encoded = model.encode(torch.stack([one.window(n_frames) for one in active]))
        self._tell_languages(active, encoded, **beside)
        tokens, mask, n_init = self._prompts(active)
        inputs = {"audio": encoded, "tokens": tokens, **beside}
        if mask is not None:
            inputs["attention_mask"] = mask
        limit = self.limit(tokens.shape[1])
        decoded = decode_window(model, inputs, n_init, limit, self.options, self.watched, progress)
        if any(heard.temperature > 0 for heard in decoded.heard):
            # As in the reference: once anything was drawn, there are no beams any more.
            self.options = replace(self.options, num_beams=1)
        self._keep(active, decoded, recorder)
        for recording, heard in zip(active, decoded.heard, strict=True):
            self.take(recording, heard, tokens.shape[1])

    # --- Before the window ------------------------------------------------------------------------

    def _tell_languages(self, active: list[Recording], encoded: Tensor, **beside: Any) -> None:
        if all(recording.language for recording in active):
            return
        languages = self.model.languages_of(encoded, **beside)
        for recording, found in zip(active, languages, strict=True):
            recording.language = recording.language or found

    def _prompts(self, active: list[Recording]) -> tuple[Tensor, Tensor | None, int]:
        """Prompts `[row pos]`, a mask where some are padded, and each one's own length."""
        options = self.options
        own = [
            self.model.prompt(recording.language, options.task, options.timestamps)
            for recording in active
        ]
        before = self._before(active)
        longest = max(map(len, before))
        n_ctx = self.model.config.decoder.n_ctx
        if longest + len(own[0]) >= n_ctx:
            raise GenerationError(
                f"the prompt, what came before, has {longest} tokens, which leaves no room behind "
                f"it: the decoder has {n_ctx} positions"
            )
        padding = (end_tokens(self.model.generation_config) or [0])[0]
        rows = [
            [padding] * (longest - len(prev)) + prev + prompt
            for prev, prompt in zip(before, own, strict=True)
        ]
        mask = [
            [0] * (longest - len(prev)) + [1] * (len(prev) + len(prompt))
            for prev, prompt in zip(before, own, strict=True)
        ]
        device = self.model.device
        padded = any(len(prev) < longest for prev in before)
        return (
            torch.tensor(rows, device=device),
            torch.tensor(mask, device=device) if padded else None,
            len(own[0]),
        )

    def _before(self, active: list[Recording]) -> list[list[int]]:
        """What is said to have come before, of each row."""
        if any(one.conditioned for one in active) and self.recordings[0].cuts:
            kept = self.model.config.decoder.n_ctx // 2 - 1
            return [[*self._start_of_previous, *self._told(one)[-kept:]] for one in active]
        return [list(self.options.prompt)] * len(active)

    def _told(self, recording: Recording) -> list[int]:
        """The transcript so far, without the second stamp of a pair that ends a segment."""
        if not recording.conditioned:
            return []
        told = []
        for piece in recording.cuts:
            tokens = piece.tokens
            paired = len(tokens) > 2 and tokens[-2] >= self.first_timestamp
            told += tokens[:-1] if paired else tokens
        return told

    @property
    def _start_of_previous(self) -> list[int]:
        rules = self.model.generation_config
        start = getattr(rules, "prev_sot_token_id", None)
        if start is None and len(rules.suppress_tokens or []) >= 2:
            start = rules.suppress_tokens[-2]  # where older checkpoints have it
        return [] if start is None else [start]

    def limit(self, n_prompt: int) -> int:
        """How many tokens prompt and text may have together, as the reference counts."""
        n_ctx: int = self.model.config.decoder.n_ctx
        new = self.options.max_new_tokens
        if new is not None:
            if n_prompt + new > n_ctx:
                raise GenerationError(
                    f"the prompt has {n_prompt} tokens and the decoder {n_ctx} positions: "
                    f"max_new_tokens is at most {n_ctx - n_prompt}; got {new}"
                )
            return n_prompt + new
        self._max_length = min(self._max_length + min(n_ctx // 2 - 1, n_prompt), n_ctx)
        return self._max_length

    # --- Behind the window ------------------------------------------------------------------------

    def _keep(self, active: list[Recording], decoded: DecodedWindow, encoder: StepRecorder) -> None:
        cache = None
        if self.watched.names:
            cache = ActivationCache({**encoder.joined(), **decoded.activations}, self.model)
        self.windows.append(
            Window(
                clips=[recording.clip for recording in active],
                start=[recording.seek / FRAMES_PER_SECOND for recording in active],
                whole_tokens=decoded.whole,
                cache=cache,
            )
        )

    def take(self, recording: Recording, heard: Heard, n_prompt: int) -> None:
        """Add what was heard to a recording, and move it on."""
        real = min(recording.n_frames - recording.seek, self.model.config.n_frames)
        recording.heard.append(heard)
        recording.conditioned = (
            bool(self.options.condition_on_prev_tokens) and heard.temperature < _SURE_TEMPERATURE
        )
        if heard.skipped:
            recording.seek += real
            return
        cuts, onward = cut(heard.row.tokens, self.first_timestamp, real)
        offset, first = recording.seek / FRAMES_PER_SECOND, 0
        n_heard = min(real, recording.n_heard - recording.seek)
        times = WordTimes(n_prompt, self.options.timestamps, n_heard, offset)
        for piece in cuts:
            segment = self._segment(heard, piece, first, times, recording.language)
            recording.segments.append(segment)
            first += len(piece.tokens)
        recording.cuts += cuts
        recording.seek += onward or real  # two stamps of 0.00 s would stay here for ever

    def _segment(
        self, heard: Heard, piece: Cut, first: int, times: WordTimes, language: str | None
    ) -> Segment:
        """A piece of a row, which begins at the row's token `first`."""
        text = [token for token in piece.tokens if token < self.first_timestamp]
        places = range(first, first + len(piece.tokens))
        return Segment(
            start=times.offset + piece.start,
            end=times.offset + piece.end,
            text=self.model.text_of(text),
            tokens=piece.tokens,
            avg_logprob=heard.row.avg_logprob,
            no_speech_prob=heard.no_speech_prob,
            compression_ratio=heard.compression_ratio,
            temperature=heard.temperature,
            words=times.words(self.model, heard, places, language) if self.options.words else None,
        )


def first_timestamp(rules: Any, d_vocab: int) -> int:
    """The token of 0.00 s; one that is never met, where a checkpoint has none."""
    without = getattr(rules, "no_timestamps_token_id", None)
    return d_vocab + 1 if without is None else without + 1
