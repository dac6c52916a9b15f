"""Where a row of interventions first differs from the clean run, and what of it must be run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.interventions import Intervention
from hooked_asr.interventions.span import Span
from hooked_asr.names import HookSpec
from hooked_asr.patching.engine.stages import Stages

# Behind these a batch of one cannot become many: queries, keys and values must be as many rows, and
# what the projector gives is dealt out clip by clip.
_OF_QUERIES = ("hook_q", "hook_q_input", "hook_rot_q")
_OF_KEYS = ("hook_k", "hook_k_input", "hook_rot_k", "hook_v", "hook_v_input")
_TOO_LATE = (*_OF_QUERIES, *_OF_KEYS, "projector.hook_out")
# What of a layer its queries and keys are made of.
_BEFORE_KEYS = ("hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized")
# What a map says of a position may hang on later ones, which an edited map may look at.
_MAPS = ("hook_pattern", "hook_attn_scores")


@dataclass(frozen=True, eq=False)
class Row:
    """Interventions that make one row of a sweep.

    - `stage`: where it first differs; `joins_at`: the hook of that stage at which the clean run
      becomes this row, None where it must from the stage's beginning.
    - `start`, `stop`: decoder positions to compute; those before are the clean run's, those behind
      are not asked for.
    - `own_audio`: stages of the decoder in which it changes the audio's keys and values.
    - `maps`: the attention maps that it changes, which then are computed.
    - `at_tail`: whether it acts behind the last layer, on positions that are not read too.
    - `ends_early`: whether of the last layer only the positions read need be computed.
    """

    number: int
    hooks: tuple[Intervention, ...]
    stage: int
    joins_at: str | None
    start: int
    stop: int
    own_audio: frozenset[int]
    maps: frozenset[str]
    at_tail: bool
    ends_early: bool


class Placing:
    """Tells where rows join: for one model, and runs of `n_pos` tokens, the first `n_read` read.

    `join_late`: whether a row may join inside a stage; several clips at once may not.
    """

    def __init__(
        self,
        table: Mapping[str, HookSpec],
        stages: Stages,
        n_pos: int,
        n_read: int,
        first_audio: int,
        join_late: bool,
    ) -> None:
        self._table, self._stages = table, stages
        self._order = {name: place for place, name in enumerate(table)}
        self._n_pos, self._n_read, self._first_audio = n_pos, n_read, first_audio
        self._join_late = join_late

    def row(self, number: int, hooks: Iterable[Any]) -> Row | None:
        """The row that some hooks make; None where only a whole forward can tell what they do."""
        placed = tuple(hooks)
        if not placed or not all(map(self._is_placed, placed)):
            return None
        names = sorted((one.site.hook for one in placed), key=self._order.__getitem__)
        start, stop = self._positions(placed)
        stage = self._stages.of(names[0])
        return Row(
            number=number,
            hooks=placed,
            stage=stage,
            joins_at=names[0] if self._joins_late(names[0], stage) else None,
            start=start,
            stop=stop,
            own_audio=frozenset(
                self._stages.of(name)
                for name in names
                if "cross_attn" in name and name.endswith(_OF_KEYS)
            ),
            maps=frozenset(name for name in names if name.endswith(_MAPS)),
            at_tail=self._stages.of(names[-1]) == self._stages.tail,
            ends_early=all(hook.by_position for hook in placed)
            and not any(map(self._keeps_going, names)),
        )

    def _is_placed(self, hook: Any) -> bool:
        """Whether it is an intervention at one hook, in a forward's only step."""
        return (
            isinstance(hook, Intervention)
            and hook.site.hook in self._table
            and hook.lockstep is None
            and hook.acts_in(0)
        )

    def _joins_late(self, name: str, stage: int) -> bool:
        if not self._join_late or name.endswith("hook_resid_pre") or stage == self._stages.tail:
            return False
        if "cross_attn" in name and name.endswith(_OF_QUERIES):  # many may read one recording
            return True
        return not name.endswith(_TOO_LATE)

    def _keeps_going(self, name: str) -> bool:
        """Whether a hook acts so late, and on so much, that unread positions count there too."""
        stage = self._stages.of(name)
        in_last = stage == self._stages.decoder[-1] and "cross_attn" not in name
        return stage == self._stages.tail or (
            in_last and name.endswith((*_OF_QUERIES, *_OF_KEYS, *_BEFORE_KEYS))
        )

    def _positions(self, hooks: Sequence[Intervention]) -> tuple[int, int]:
        if not all(hook.by_position for hook in hooks):
            return 0, self._n_pos
        start = min(self._first_touched(hook) for hook in hooks)
        acausal = any(
            hook.site.hook.endswith(_MAPS) and "cross_attn" not in hook.site.hook for hook in hooks
        )
        return start, self._n_pos if acausal else self._n_read

    def _first_touched(self, hook: Intervention) -> int:
        """The first decoder position that an intervention changes anything at."""
        spec, positions = self._table[hook.site.hook], hook.site.positions
        if self._stages.in_encoder(self._stages.of(spec.name)) or spec.clock == "pooled":
            return self._first_audio
        if spec.clock != "pos" or positions is None:
            return 0
        return positions.start if isinstance(positions, Span) else min(positions)
