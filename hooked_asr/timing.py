"""Where a moment of sound is: log-mel frames, encoder positions, pooled ones, seconds."""

from __future__ import annotations

import math
from fractions import Fraction

FRAMES_PER_SECOND = 100
# Log-mel frames that make one position of each clock (see `names.HookSpec.clock`).
FRAMES = {"frame": 1, "audio": 2, "pooled": 4}


def seconds(position: int, clock: str) -> tuple[float, float]:
    """From when to when (s) a position hears.

    >>> seconds(50, "audio"), seconds(50, "pooled")
    ((1.0, 1.02), (2.0, 2.04))
    """
    width = FRAMES[clock]
    return position * width / FRAMES_PER_SECOND, (position + 1) * width / FRAMES_PER_SECOND


def hearing(start: float, stop: float, clock: str) -> range:
    """The positions that hear anything of the sound between two moments (s).

    The moments count as they are written: 0.57 is 57 frames, though the float is a little less.

    >>> hearing(0.5, 1.2, "audio"), hearing(0.57, 0.58, "frame"), hearing(0.03, 0.05, "audio")
    (range(25, 60), range(57, 58), range(1, 3))
    """
    per_second = Fraction(FRAMES_PER_SECOND, FRAMES[clock])
    first, end = (Fraction(str(moment)) * per_second for moment in (start, stop))
    return range(math.floor(first), math.ceil(end))


def encoder_length(n_frames: int) -> int:
    """Encoder positions of so many real frames: the second convolution takes every other.

    >>> encoder_length(3000), encoder_length(101)
    (1500, 51)
    """
    return (n_frames - 1) // 2 + 1


def pooled_length(n_frames: int) -> int:
    """Pooled positions of so many real frames; a last encoder position without a partner is lost.

    >>> pooled_length(3000), pooled_length(101)
    (750, 25)
    """
    return (encoder_length(n_frames) - 2) // 2 + 1
