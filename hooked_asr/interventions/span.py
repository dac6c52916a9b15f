"""Runs of whole numbers, with or without an end: steps of a decoding, open positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import SupportsIndex


@dataclass(frozen=True)
class Span:
    """The numbers from `start` on; up to, and without, `stop` if there is one.

    >>> 7 in Span(5), str(Span(5)), str(Span(2, 5)), str(Span(0, 1))
    (True, '5-', '2-4', '0')
    """

    start: int
    stop: int | None = None

    def __contains__(self, number: SupportsIndex) -> bool:
        n = int(number)
        return n >= self.start and (self.stop is None or n < self.stop)

    def __str__(self) -> str:
        if self.stop is None:
            return f"{self.start}-"
        last = self.stop - 1
        return str(last) if last == self.start else f"{self.start}-{last}"

    @property
    def empty(self) -> bool:
        return self.stop is not None and self.stop <= self.start
