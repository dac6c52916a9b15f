"""Interventions that act only where a monitor has raised its alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.monitor import Monitor
from hooked_asr.names import HookSpec, select
from hooked_asr.patching.treatments import told_of

Function = Callable[..., Tensor | None]


def gate(
    model: Any, monitor: Monitor, interventions: Iterable[Any], *, hold: int | None = None
) -> Gate:
    """Interventions for a decoding, each row's beginning where the monitor flags that row.

        guard = gate(model, Monitor(probe, threshold=0.9), [zero("decoder.3.cross_attn")])
        heard = model.generate(["a.flac", "b.flac"], interventions=guard)
        guard.fired[-1]  # of the last window: the token at which each row was flagged, or None

    The monitor reads every token that was said as it is read in again (the prompt is none), and its
    score there, as in `ClipScores.tokens`, is held against the threshold. From a flag on the
    interventions act on that row: in the same step behind the monitor's site, otherwise from the
    next one on. A window begins unflagged. While nothing is flagged nothing is computed otherwise:
    a transcript in which the monitor never fires is the plain one, to the bit.

    - `interventions`: as `generate` takes them, with functions of your own among them.
    - `hold`: for how many tokens they act after a flag; to the end of the window, if not said.

    Of several gates each has its own monitor. Put interventions that the monitor is to see before
    the gate. For `generate`, greedily or drawn at a temperature; not for beams.

    Raises `MonitorError` for a monitor of the encoder, which has told all before the first token,
    no intervention, one that acts before the first token, or a `hold` below 1; `ProbeError` for a
    probe of another model, `UnknownHookError`.
    """
    spec = monitor.spec(model)
    if spec.clock != "pos":
        raise MonitorError(
            f"the monitor of {monitor.name} reads {spec.name!r}, before anything is said: a gate "
            "takes one of the decoder; for the encoder's, decode what it does not flag plainly"
        )
    if hold is not None and hold < 1:
        raise MonitorError(f"interventions act for at least 1 token after a flag; got hold={hold}")
    monitor.probe.check(model)
    found = Gate(monitor, spec.name, hold)
    for selector, fn in interventions:
        for name in select(selector, model.hook_table):
            _check_clock(model.hook_table[name])
            found.acting.append((name, _Gated(found, fn)))
    if not found.acting:
        raise MonitorError("there is nothing to switch on: give at least one intervention")
    return found


def _check_clock(spec: HookSpec) -> None:
    if spec.clock != "pos":
        raise MonitorError(
            f"decoding passes {spec.name!r} before anything is said, and what a gate switches on "
            "would never act there: give interventions in the decoder, at tokens"
        )


@dataclass(eq=False)
class Gate:
    """A monitor and what it switches on; a list of hooks, as it stands. Made by `gate`.

    `fired`: for each window decoded so far, and each row, the token, counted from 0, at which it
    was flagged first; None where it never was. A row that has ended goes on as padding beside
    longer ones: numbers from its count of tokens on are of that.
    """

    monitor: Monitor
    site: str
    hold: int | None = None
    acting: list[tuple[str, _Gated]] = field(default_factory=list)
    fired: list[list[int | None]] = field(default_factory=list)
    _read: int = 0  # the latest step in which the monitor has read
    _flagged_at: list[int | None] = field(default_factory=list)  # of each row: the latest such step

    def __iter__(self) -> Iterator[tuple[str, Function]]:
        yield (self.site, self._watch)
        yield from self.acting

    def __str__(self) -> str:
        done = ", ".join(f"{fn.inner!s} at {name}" for name, fn in self.acting)
        return f"{self.monitor.name} at {self.site}: {done}"

    @property
    def told(self) -> list[Any]:
        """What tells it from another gate, as far as its functions tell."""
        probe = self.monitor.probe
        done = told_of([(name, fn.inner) for name, fn in self.acting])
        numbers = [probe.weights.tolist(), probe.bias.tolist()]
        return [self.site, self.hold, self.monitor.threshold, self.monitor.alarm, numbers, done]

    def _watch(self, x: Float[Tensor, "row pos *d"], hook: Any) -> None:
        """The hook function that reads along; raises `MonitorError` for rows that have moved."""
        step = self._read = hook.clock.step
        if step == 0:
            self._flagged_at = [None] * len(x)
            if x.shape[1] > 1:  # otherwise a pass in which languages are told
                self.fired.append([None] * len(x))
            return
        if len(x) != len(self._flagged_at):
            raise MonitorError(
                f"{len(self._flagged_at)} rows became {len(x)} while decoding, and a gate no "
                "longer knows which it has flagged: decode without beams"
            )
        scores = self.monitor.score(self.monitor.probe.decision(x[:, -1].flatten(1)))
        for row, score in enumerate(scores.tolist()):
            if self.monitor.flags(score):
                self._flag(row, step)

    def _flag(self, row: int, step: int) -> None:
        self._flagged_at[row] = step
        if self.fired[-1][row] is None:
            self.fired[-1][row] = step - 1  # step 1 reads the first token in

    def open(self, step: int) -> list[bool]:
        """On which rows interventions act in a step."""
        # Before the monitor's site a flag of this very step is not yet known.
        behind = self._read == step
        return [
            at is not None and (self.hold is None or step - at < self.hold + (not behind))
            for at in self._flagged_at
        ]


@dataclass(eq=False)
class _Gated:
    """A hook function that acts on some rows."""

    gate: Gate
    inner: Function

    by_position = False  # it hangs on what was said before

    @property
    def lockstep(self) -> Any:
        """The reference that must be decoded beside, for what comes in."""
        return getattr(self.inner, "lockstep", None)

    def __call__(self, x: Float[Tensor, "row ..."], hook: Any) -> Tensor | None:
        rows = self.gate.open(hook.clock.step)
        if hook.clock.step == 0 or not any(rows):
            return None
        edited = x.clone()
        out = self.inner(edited, hook=hook)
        if out is not None:
            edited = hook.checked(out, x, self.inner)
        return torch.where(_chosen(rows, x), edited, x)


def _chosen(rows: list[bool], x: Tensor) -> Bool[Tensor, "row ..."]:
    return torch.tensor(rows, device=x.device).view(-1, *[1] * (x.ndim - 1))
