"""One recording under many interventions, each giving a transcript of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_asr.generation.loop import Row, decode_rows
from hooked_asr.generation.options import DecodingOptions
from hooked_asr.generation.recording import Recording
from hooked_asr.generation.recordings import Transcription
from hooked_asr.generation.row_hooks import RowHooks
from hooked_asr.generation.rows import RowsDecoder
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors
from hooked_asr.generation.window import Heard, Watched
from hooked_asr.names import select
from hooked_asr.shapes import Audio
from hooked_asr.speech import token_compression_ratio


class RowRecordings:
    """The decoding of one recording once for each row of hooks.

    The first window is decoded for all rows together; a row whose transcript asks for more windows
    goes on alone.
    """

    def __init__(
        self, model: Any, recording: Recording, hooks: Sequence[Any], options: DecodingOptions
    ) -> None:
        self.model, self.recording, self.options = model, recording, options
        self.hooks = [list(own) for own in hooks]
        self.row_hooks = RowHooks(model, self.hooks)
        self._window = recording.window(model.config.n_frames)[None]

    def run(self, batch_size: int, progress: bool = False) -> list[Recording]:
        """The recording as each row hears it, `batch_size` rows at a time."""
        encoded = self.model.encode(self._window)
        language = self.recording.language or self.model.languages_of(encoded)[0]
        untouched = self._untouched(encoded, language)
        heard: dict[int, Recording] = {}
        with tqdm(total=len(self.hooks), unit="row", disable=not progress, leave=False) as bar:
            for rows, own_audio in self._batches(batch_size):
                with self.row_hooks.attached():
                    self.row_hooks.rows = rows
                    audio = self._encoded(rows) if own_audio else encoded
                    languages = self._languages(rows, audio)
                    for group, foreseen in self._groups(rows, languages, language, untouched):
                        heard |= self._decode(group, rows, languages, audio, foreseen)
                bar.update(len(rows))
        return [self._to_the_end(row, heard[row]) for row in range(len(self.hooks))]

    def _batches(self, batch_size: int) -> Iterator[tuple[list[int], bool]]:
        """Rows to decode together, and whether each hears something of its own."""
        for own_audio in (False, True):
            rows = [
                row
                for row in range(len(self.hooks))
                if self.row_hooks.touches_audio(row) == own_audio
            ]
            for start in range(0, len(rows), batch_size):
                yield rows[start : start + batch_size], own_audio

    def _encoded(self, rows: list[int]) -> Audio:
        return self.model.encode(self._window.expand(len(rows), -1, -1))

    def _languages(self, rows: list[int], audio: Audio) -> list[str]:
        if self.recording.language:
            return [self.recording.language] * len(rows)
        return list(self.model.languages_of(audio, n_rows=len(rows)))

    def _prompt(self, language: str) -> list[int]:
        own = self.model.prompt(language, self.options.task, self.options.timestamps)
        return [*self.options.prompt, *own]

    def _untouched(self, encoded: Audio, language: str) -> Row:
        """What is heard without any row's hooks."""
        prompt = torch.tensor([self._prompt(language)], device=self.model.device)
        processors = logits_processors(
            self.model.generation_config,
            PromptShape(prompt.shape[1], str(prompt.device)),
            self.options.timestamps,
        )
        inputs = {"audio": encoded, "tokens": prompt}
        limit = self._limit(language)
        return decode_rows(self.model, inputs, limit, processors).rows[0]

    def _limit(self, language: str) -> int:
        return self._transcription(self.recording).limit(len(self._prompt(language)))

    def _groups(
        self, rows: list[int], languages: list[str], language: str, untouched: Row
    ) -> Iterator[tuple[list[int], Row | None]]:
        """Rows that can be checked against the untouched transcript, and those that cannot."""
        checked = [
            row
            for row, own in zip(rows, languages, strict=True)
            if own == language and self.row_hooks.by_position(row)
        ]
        others = [row for row in rows if row not in checked]
        yield from (
            (group, foreseen) for group, foreseen in ((checked, untouched), (others, None)) if group
        )

    def _decode(
        self,
        group: list[int],
        rows: list[int],
        languages: list[str],
        audio: Audio,
        untouched: Row | None,
    ) -> dict[int, Recording]:
        places = [rows.index(row) for row in group]
        spoken = [languages[place] for place in places]
        prompts = [self._prompt(language) for language in spoken]
        decoder = RowsDecoder(
            self.model,
            self.row_hooks,
            self._limit(spoken[0]),
            self.options.timestamps,
            n_init=len(prompts[0]) - len(self.options.prompt),
        )
        own = audio if len(audio) == 1 else audio[places]
        said = decoder.decode(group, prompts, own, untouched)
        heard = {}
        for row, language, one in zip(group, spoken, said, strict=True):
            self._warn_of_idle(row, len(prompts[0]), len(one.tokens))
            heard[row] = self._taken(language, one, decoder.no_speech[row], len(prompts[0]))
        return heard

    def _taken(self, language: str, said: Row, no_speech: float | None, n_prompt: int) -> Recording:
        recording = replace(self.recording, language=language, cuts=[], segments=[], heard=[])
        end = end_tokens(self.model.generation_config)[:1] if said.ended else []
        ratio = token_compression_ratio(said.tokens + end, self.model.config.d_vocab)
        window = Heard(said, 0.0, no_speech, ratio, skipped=False, patterns=None)
        self._transcription(recording).take(recording, window, n_prompt)
        return recording

    def _to_the_end(self, row: int, recording: Recording) -> Recording:
        if not recording.done:
            with self.model.hooks(self.hooks[row]):
                self._transcription(recording).run()
        return recording

    def _transcription(self, recording: Recording) -> Transcription:
        return Transcription(self.model, [recording], self.options, Watched())

    def _warn_of_idle(self, row: int, n_prompt: int, n_said: int) -> None:
        """Say which of a row's interventions had nothing to do, as a decoding of its own would."""
        for selector, fn in self.hooks[row]:
            if not hasattr(fn, "unmet"):  # a plain function
                continue
            steps = [step for step in range(n_said + 1) if fn.acts_in(step)]
            missed = fn.unmet(self._met(selector, steps, n_prompt), n_said + 1)
            if missed:
                warnings.warn(f"row {row}: {fn} on {selector!r} never met {missed}", stacklevel=2)

    def _met(self, selector: Any, steps: list[int], n_prompt: int) -> range:
        """The positions that pass a hook in these steps."""
        table = self.model.hook_table
        spec = table[select(selector, table)[0]]
        if spec.clock != "pos":  # the encoder runs once
            n_positions = spec.shape(self.model.config, 1, 1)[spec.position_axis]
            return range(n_positions if 0 in steps else 0)
        passed = [p for step in steps for p in _positions(step, n_prompt)]
        return range(passed[0], passed[-1] + 1) if passed else range(0)


def _positions(step: int, n_prompt: int) -> range:
    """The positions that pass in a step of a decoding."""
    return range(n_prompt) if step == 0 else range(n_prompt + step - 1, n_prompt + step)
