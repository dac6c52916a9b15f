"""Some rows, run together from where the first of them joins to the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.generation.row_hooks import RowHooks
from hooked_asr.patching.engine.clean import CleanRun, Stream, unembedded
from hooked_asr.patching.engine.rows import Row
from hooked_asr.shapes import Logits

# Encoder positions that run together on a CPU: more do not make its products faster, and leave its
# caches.
_ON_CPU = 2048
Batch = tuple[list[Row], Stream | None]


class Chunk:
    """Rows in the order of their stages, all of the encoder or all of the decoder."""

    def __init__(self, clean: CleanRun, rows: Sequence[Row]) -> None:
        self.model, self.clean, self.stages = clean.model, clean, clean.stages
        self.rows = sorted(rows, key=lambda row: row.stage)
        self.in_encoder = self.stages.in_encoder(self.rows[0].stage)
        self.start, self.stop = min(row.start for row in rows), max(row.stop for row in rows)
        self._read_from = self._first_read()
        self._hooks = RowHooks(self.model, [row.hooks for row in self.rows], clean.sizes)
        self._places = {row: place for place, row in enumerate(self.rows)}

    def _first_read(self) -> int:
        """From where on the last layer is computed: what comes before is not read from there."""
        reads = self.clean.reads
        whole = self.model.config.prefix or not all(row.ends_early for row in self.rows)
        return self.start if whole else max(self.start, *reads[:1])

    def logits(self, at_once: int) -> Iterator[tuple[Row, Logits]]:
        """Each row's logits at the positions read; `at_once`: how many rows are unembedded."""
        with self._hooks.attached():
            rows, stream = self._decoded(*self._encoded())
            size = self.clean.sizes["batch"]
            for first in range(0, len(rows), at_once):
                some = rows[first : first + at_once]
                here = stream[first * size : (first + len(some)) * size]
                yield from zip(some, self._unembedded(some, here).split(size), strict=True)

    def _encoded(self) -> Batch:
        """The rows that differ in the encoder, and what each of them hears."""
        batch: Batch = ([], None)
        for stage in range(self.rows[0].stage, self.stages.embed):
            batch = self._advanced(batch, stage, self._encoder_stage)
        return batch

    def _decoded(self, rows: list[Row], audio: Stream | None) -> tuple[list[Row], Stream]:
        """The rows, in the order in which they have joined, and what leaves the last layer."""
        batch: Batch = (rows, audio)
        if self.rows[0].stage <= self.stages.embed:
            batch = self._embedded(rows, audio)

        def layer(stage: int, stream: Stream, rows: list[Row]) -> Stream:
            return self._decoder_layer(stage, stream, rows, audio)

        first = max(self.rows[0].stage, self.stages.decoder.start)
        for stage in range(first, self.stages.tail):
            batch = self._advanced(batch, stage, layer)
        behind, stream = self._with_entering(batch, self.stages.tail)
        return behind, _present(stream)

    # --- Joining ----------------------------------------------------------------------------------

    def _advanced(
        self, batch: Batch, stage: int, run: Callable[[int, Stream, list[Row]], Stream]
    ) -> Batch:
        """The rows of a batch, and those that join in this stage, behind it."""
        rows, stream = self._with_entering(batch, stage)
        parts: list[tuple[list[Row], Stream]] = []
        for some, places in self._apart(rows, stage):
            here = _present(stream)
            parts += self._in_pieces(some, here if places is None else here[places], stage)
        late = [row for row in self.rows if row.stage == stage and row.joins_at is not None]
        late.sort(key=lambda row: row.joins_at or "")
        for _, group in groupby(late, key=lambda row: row.joins_at):
            parts.append((list(group), self._clean_stream(stage)))
        behind = []
        for some, entering in parts:
            self._hooks.rows = [self._places[row] for row in some]
            behind.append(run(stage, entering, some))
        return [row for some, _ in parts for row in some], _together(behind)

    def _with_entering(self, batch: Batch, stage: int) -> Batch:
        """A batch, and behind it the rows that leave the clean run as it enters this stage."""
        rows, stream = batch
        entering = [row for row in self.rows if row.stage == stage and row.joins_at is None]
        if not entering:
            return batch
        theirs = _repeated(self._clean_stream(stage), len(entering))
        return [*rows, *entering], _together([] if stream is None else [stream], theirs)

    def _apart(self, rows: list[Row], stage: int) -> Iterator[tuple[list[Row], Tensor | None]]:
        """Rows that read the clean audio, and rows that read their own; None for all places."""
        own = [not self.in_encoder and stage in row.own_audio for row in rows]
        if len(set(own)) == 1:
            yield rows, None
            return
        size = self.clean.sizes["batch"]
        for kind in sorted(set(own)):
            chosen = [place for place, theirs in enumerate(own) if theirs == kind]
            places = [place * size + i for place in chosen for i in range(size)]
            yield [rows[place] for place in chosen], torch.tensor(places)

    def _in_pieces(
        self, rows: list[Row], stream: Stream, stage: int
    ) -> Iterator[tuple[list[Row], Stream]]:
        """Rows of the encoder a few at a time on a CPU, whose caches all of them would overflow."""
        if not self.stages.in_encoder(stage) or self.model.device.type != "cpu":
            yield rows, stream
            return
        size = self.clean.sizes["clip"]
        at_once = max(1, _ON_CPU // (size * stream.shape[1]))
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            yield some, stream[first * size : (first + len(some)) * size]

    def _clean_stream(self, stage: int) -> Stream:
        stream = self.clean.streams[stage]
        return stream if stage <= self.stages.embed else stream[:, self.start : self.stop]

    # --- Stages -----------------------------------------------------------------------------------

    def _encoder_stage(self, stage: int, stream: Stream, rows: list[Row]) -> Stream:
        if stage == self.stages.front_end:
            return self.model.encode(stream, stop_at=0)
        layer = stage - self.stages.encoder.start
        stop = None if stage == self.stages.encoder_tail else layer + 1
        mel_mask = _repeated_to(self.clean.inputs.get("mel_mask"), stream)
        return self.model.encode(stream, mel_mask, start_at=layer, stop_at=stop)

    def _embedded(self, rows: list[Row], audio: Stream | None) -> Batch:
        """What enters the decoder, of the rows that differ by then."""
        if audio is None:
            rows, stream = self._advanced(([], None), self.stages.embed, self._embed_stage)
        else:
            self._hooks.rows = [self._places[row] for row in rows]
            stream = self._embed(len(rows), audio)
        return rows, _present(stream)[:, self.start : self.stop]

    def _embed_stage(self, stage: int, tokens: Tensor, rows: list[Row]) -> Stream:
        return self._embed(len(tokens) // len(self.clean.tokens), self.clean.audio)

    def _embed(self, n_rows: int, audio: Stream | None) -> Stream:
        n_clips = self.clean.sizes["clip"]
        if audio is not None and len(audio) == n_clips:
            audio = _repeated(audio, n_rows)
        mel_mask = self.clean.inputs.get("mel_mask")
        embedded: Stream = self.model.decode(
            _repeated(self.clean.tokens, n_rows),
            audio,
            stop_at=0,
            mel_mask=None if mel_mask is None else _repeated(mel_mask, n_rows),
        )
        return embedded

    def _decoder_layer(
        self, stage: int, stream: Stream, rows: list[Row], audio: Stream | None
    ) -> Stream:
        layer = stage - self.stages.decoder.start
        own = stage in rows[0].own_audio
        if audio is None and own:
            several = len(stream) > len(self.clean.tokens) > 1
            audio = _present(self.clean.audio)
            audio = _repeated_to(audio, stream) if several else audio
        past = self._past(audio is None)
        if stage == self.stages.decoder[-1] and self._read_from > self.start:
            before, stream = stream.tensor_split([self._read_from - self.start], dim=1)
            past = past.lengthened(layer, *self._keys_values(layer, before))
        mask = self.clean.inputs.get("attention_mask")
        behind: Stream = self.model.decode(
            stream,
            audio,
            start_at=layer,
            stop_at=layer + 1,
            past=past,
            attention_mask=None if mask is None else _repeated_to(mask[:, : self.stop], stream),
        )
        return behind

    def _keys_values(self, layer: int, stream: Stream) -> tuple[Tensor, Tensor]:
        block = self.model.decoder[layer]
        with self.model.clock.at(self.start):
            keys, values = block.attn.keys_values(block.ln1(stream))
        return keys, values

    def _past(self, shared_audio: bool) -> KVCache:
        return self.clean.past.shared(self.start, audio=shared_audio)

    def _unembedded(self, rows: list[Row], stream: Stream) -> Logits:
        """The logits at the positions read: the clean run's, where they come before the rows'."""
        reads = self.clean.reads
        n_early = sum(position < self.start for position in reads)
        late = reads[n_early:]
        first = self._read_from
        places = range(late.start - first, late.stop - first, late.step)
        self._hooks.rows = [self._places[row] for row in rows]
        if any(row.at_tail for row in rows):
            with self.model.clock.at(first):
                every = unembedded(self.model, stream, range(stream.shape[1]))
            logits = every[:, places.start : places.stop : places.step]
        else:
            logits = unembedded(self.model, stream, places)
        if not n_early:
            return logits
        return torch.cat([_repeated_to(self.clean.logits[:, :n_early], logits), logits], dim=1)


def _present(stream: Stream | None) -> Stream:
    if stream is None:
        raise RuntimeError("no row has joined by a stage that takes one")
    return stream


def _repeated(x: Tensor, n: int) -> Tensor:
    """A batch `n` times, one behind the other."""
    return x if n == 1 else x.repeat(n, *[1] * (x.ndim - 1))


def _repeated_to(x: Tensor | None, like: Tensor) -> Any:
    """A batch as often as makes it as long as another."""
    return None if x is None else _repeated(x, len(like) // len(x))


def _together(streams: Iterable[Stream], *more: Stream) -> Stream:
    parts = [*streams, *more]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
