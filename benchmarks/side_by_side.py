"""Two ways of doing the same, timed in turn so that a busy machine slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the rounds' ratios (ours over theirs).

    Each round times both, in alternating order; the first two rounds warm up and do not count.
    """
    times: list[tuple[float, float]] = []
    for i in range(rounds + 2):
        if i % 2:
            a, b = seconds(ours), seconds(theirs)
        else:
            b, a = seconds(theirs), seconds(ours)
        times.append((a, b))
    kept = times[2:]
    ratio = statistics.median(a / b for a, b in kept)
    return statistics.median(a for a, _ in kept), statistics.median(b for _, b in kept), ratio
