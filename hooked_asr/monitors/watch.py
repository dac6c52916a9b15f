"""Hook functions that reduce what passes to a probe's outputs, as it passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.monitors.errors import MonitorError
from hooked_asr.probes import LinearProbe

_AT_ONCE = 64  # steps that are reduced together: a product for each would cost more than it


@dataclass(eq=False)
class _Pass:
    """A decoding from its prompt on: outputs at the newest position of each step.

    `waiting`: what the last few steps have there, before it is reduced.
    """

    n_prompt: int
    done: list[Float[Tensor, "row _ out"]] = field(default_factory=list)
    waiting: list[Float[Tensor, "row 1 *d"]] = field(default_factory=list)

    def reduce(self, probe: LinearProbe) -> None:
        if self.waiting:
            self.done.append(probe.decision(torch.cat(self.waiting, dim=1).flatten(2)))
            self.waiting.clear()


@dataclass(frozen=True, eq=False)
class Outputs:
    """A probe's outputs for the rows of one window `[row step out]`.

    Step 0 is the prompt's last position, step i the one where token i - 1 was read in.
    """

    n_prompt: int
    steps: Float[Tensor, "row step out"]


class TokenWatch:
    """Reads a probe at each step of a decoding of rows that stay where they are.

    - `alone`: no other function is attached anywhere that could edit in place what has passed.
    """

    def __init__(self, probe: LinearProbe, alone: bool = False) -> None:
        self._probe = probe
        self._alone = alone
        self._passes: list[_Pass] = []

    def __call__(self, x: Float[Tensor, "row pos *d"], hook: Any) -> None:
        step = hook.clock.step
        if step == 0:
            if self._passes:
                self._passes[-1].reduce(self._probe)
            self._passes.append(_Pass(hook.positions.stop))
        now = self._passes[-1]
        # A copy takes longer than all else here; the prompt's view would keep the whole alive.
        kept = x if self._alone and step else x[:, -1:].clone()
        now.waiting.append(kept)
        if len(now.waiting) == _AT_ONCE:
            now.reduce(self._probe)

    def windows(self, n_windows: int) -> list[Outputs]:
        """The outputs of each window.

        Raises `MonitorError` where the decoding ran otherwise than window after window.
        """
        passes = self._passes
        if len(passes) == n_windows + 1:  # in the first pass the languages were told
            passes = passes[1:]
        if len(passes) != n_windows:
            raise MonitorError(
                f"{n_windows} windows were decoded in {len(self._passes)} passes, and a monitor "
                "knows of one for each: leave out hooks that run the model themselves"
            )
        for one in passes:
            one.reduce(self._probe)
        return [Outputs(one.n_prompt, torch.cat(one.done, dim=1)) for one in passes]


class FrameWatch:
    """Reads a probe at every frame of each window, before anything is decoded."""

    def __init__(self, probe: LinearProbe) -> None:
        self._probe = probe
        self.windows: list[Float[Tensor, "clip pos out"]] = []

    def __call__(self, x: Float[Tensor, "clip pos *d"], hook: Any) -> None:
        self.windows.append(self._probe.decision(x.detach().flatten(2)))


def of_cache(probe: LinearProbe, x: Float[Tensor, "row pos *d"], n_prompt: int) -> Outputs:
    """The outputs for activations that a decoding kept."""
    return Outputs(n_prompt, probe.decision(x[:, n_prompt - 1 :].flatten(2)))
