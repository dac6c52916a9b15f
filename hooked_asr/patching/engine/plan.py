"""Which rows run together, and which by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hooked_asr.names import select
from hooked_asr.patching.engine.clean import CleanRun, sizes_of
from hooked_asr.patching.engine.measure import AnyMetric, measured, reads_of
from hooked_asr.patching.engine.memory import Costs, MemoryLimitError, readable
from hooked_asr.patching.engine.rows import Placing, Row
from hooked_asr.patching.engine.stages import Stages
from hooked_asr.shapes import Audio, Logits

Inputs = Mapping[str, Tensor]

# Rows that begin within this share of each other's positions run together: a little more is
# computed, in fewer steps.
_NEAR = 0.125
# Decoder positions that run together on a CPU.
_ON_CPU = 4096


class Plan:
    """The rows of a sweep over one input, and what is measured.

    `plain`: numbers of the rows that cannot be placed; `untouched`: of those that act only behind
    all that is read.
    """

    def __init__(
        self, model: Any, inputs: Inputs, rows: Sequence[tuple[Any, ...]], metric: AnyMetric
    ) -> None:
        self.model, self.inputs, self.metric, self._hooks = model, inputs, metric, rows
        self.stages, self._sizes = Stages(model.config), sizes_of(inputs)
        n_pos = inputs["tokens"].shape[1]
        self.reads = reads_of(metric, n_pos)
        placed = self._placed(rows, n_pos)
        self.plain = [number for number, row in enumerate(placed) if row is None]
        there = [row for row in placed if row is not None]
        self.untouched = [row.number for row in there if row.start >= row.stop]
        self._rows = [row for row in there if row.start < row.stop]
        self._costs = Costs(
            model.config,
            model.dtype.itemsize,
            batch=self._sizes["batch"],
            n_clips=self._sizes["clip"],
            n_pos=n_pos,
            n_reads=len(self.reads),
        )

    def clean_run(self) -> CleanRun:
        return CleanRun(self.model, self.inputs, self.reads, {row.stage for row in self._rows})

    # --- Measuring --------------------------------------------------------------------------------

    def measure(self, here: Logits) -> Tensor:
        """The metric, from logits at the positions that it reads: its mean over clips."""
        return measured(self.metric, here)

    def measured_plainly(self, number: int, audio: Audio | None) -> Tensor:
        """The metric of a row in a forward of its own, on the clean audio where it leaves that."""
        hooks = self._hooks[number]
        inputs = dict(self.inputs)
        if audio is not None and not self._hears(hooks):
            inputs = {"audio": audio, **{k: v for k, v in inputs.items() if k != "mel"}}
        logits = self.model.run_with_hooks(**inputs, fwd_hooks=hooks)
        return self.measure(logits[:, self.reads.start : self.reads.stop : self.reads.step])

    def _hears(self, hooks: Sequence[Any]) -> bool:
        """Whether any of these hooks, or of those attached already, lies in the encoder."""
        names = [select(selector, self.model.hook_table) for selector, _ in hooks]
        attached = [n for n, point in self.model.hook_points.items() if point.active]
        every = {name for some in (*names, attached) for name in some}
        return any(self.stages.in_encoder(self.stages.of(name)) for name in every)

    # --- Placing ----------------------------------------------------------------------------------

    def _placed(self, rows: Sequence[tuple[Any, ...]], n_pos: int) -> list[Row | None]:
        if self.model.has_hooks:  # which would meet other batches than in a forward of their own
            return [None] * len(rows)
        masked = self.inputs.get("attention_mask") is not None  # whose rows may begin anywhere
        placing = Placing(
            self.model.hook_table,
            self.stages,
            n_pos,
            n_read=n_pos if masked else max(self.reads, default=-1) + 1,
            first_audio=self._first_audio(),
            join_late=max(self._sizes.values()) == 1,
        )
        placed = [placing.row(number, hooks) for number, hooks in enumerate(rows)]
        return [row if row and self._has_room(row, n_pos) else None for row in placed]

    def _has_room(self, row: Row, n_pos: int) -> bool:
        """Whether the run passes where the row acts: what does not, a whole forward refuses."""
        heard = not self.stages.in_encoder(row.stage) or "mel" in self.inputs
        alone = self._sizes["batch"] == self._sizes["clip"] or bool(self.model.config.prefix)
        own = self.stages.in_encoder(row.stage) or bool(row.own_audio)
        return heard and (alone or not own) and not self._unmet(row, n_pos)

    def _unmet(self, row: Row, n_pos: int) -> bool:
        specs, sizes = self.model.hook_table, self._sizes
        for hook in row.hooks:
            spec, site = specs[hook.site.hook], hook.site
            shape = spec.shape(self.model.config, sizes["batch"], n_pos, sizes["clip"])
            there = (shape[spec.position_axis], shape[spec.head_axis or -1], shape[-1])
            asked = (site.least_positions, site.heads, site.neurons)
            if any(max(these or (0,)) >= size for these, size in zip(asked, there, strict=True)):
                return True
        return False

    def _first_audio(self) -> int:
        """The first decoder position that hears the audio."""
        prefix = self.model.config.prefix
        if prefix is None:
            return 0
        places = (self.inputs["tokens"] == prefix.audio_token).any(0).nonzero()
        return int(places[0]) if len(places) else 0

    # --- Chunks -----------------------------------------------------------------------------------

    def chunks(self, limit: int) -> list[list[Row]]:
        """Rows that run together within a limit in bytes.

        Raises `MemoryLimitError` where not even one row fits.
        """
        free = self._free(limit)
        chunks: list[list[Row]] = []
        for row in sorted(self._rows, key=self._order):
            if chunks and self._fits(row, chunks[-1], free):
                chunks[-1].append(row)
            else:
                chunks.append([row])
        return chunks

    def at_once(self, chunk: Sequence[Row], limit: int) -> int:
        """How many of a chunk's rows are unembedded together."""
        free = self._free(limit) - sum(self._costs.stream(row) for row in chunk)
        return max(1, free // self._costs.logits)

    def _order(self, row: Row) -> tuple[bool, int, int, int]:
        in_encoder = self.stages.in_encoder(row.stage)
        return (not in_encoder, row.stop, row.start, row.stage)

    def _fits(self, row: Row, chunk: list[Row], free: int) -> bool:
        """Whether a row may run with those of a chunk, which begin where its first does."""
        first = chunk[0]
        if self._order(row)[:2] != self._order(first)[:2]:
            return False
        n_positions = first.stop - first.start
        if row.start - first.start > _NEAR * n_positions:
            return False
        n_rows = len(chunk) + 1
        if self.model.device.type == "cpu" and n_rows * n_positions > _ON_CPU:
            return False
        cost = max(map(self._cost, [first, row]))
        return n_rows * cost <= free

    def _cost(self, row: Row) -> int:
        return self._costs.row(row, self.stages.in_encoder(row.stage))

    def _free(self, limit: int) -> int:
        """What a limit leaves for rows."""
        stages = {row.stage for row in self._rows}
        n_encoder = sum(map(self.stages.in_encoder, stages))
        kept = self._costs.clean(len(stages) - n_encoder, n_encoder)
        most = max([self._costs.clean_pass(), self._costs.logits, *map(self._cost, self._rows)])
        if kept + most > limit:
            raise MemoryLimitError(
                f"this sweep takes at least {readable(kept + most)}, of which the clean run is "
                f"{readable(kept)} and one row {readable(most)}; the memory given is "
                f"{readable(max(limit, 0))}. Give more, or measure at fewer positions"
            )
        return limit - kept
