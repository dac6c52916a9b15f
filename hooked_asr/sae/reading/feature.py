"""One feature, as a reading tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import altair as alt

from hooked_asr.sae.reading.excerpts import Excerpt
from hooked_asr.sae.reading.plot import excerpts_figure


@dataclass(frozen=True)
class LabelScore:
    """How well a feature tells one label; see `FeatureReading.table`."""

    kind: str
    label: str
    f1: float
    bits: float
    threshold: float
    shuffled: float
    random: float
    mass: float
    active: float
    base: float


def no_score(kind: str) -> LabelScore:
    """Of a feature that tells no label of a kind."""
    return LabelScore(kind, "", *[math.nan] * 8)


@dataclass(frozen=True)
class FeatureNote:
    """How active a feature is, the labels that it goes with, and where it is most active.

    See `FeatureReading` for `density`, `mean`, `greatest` and `histogram`. `labels`: the best of
    each kind, first; `excerpts`: the highest peak first.
    """

    number: int
    density: float
    mean: float
    greatest: float
    histogram: list[int]
    labels: list[LabelScore]
    excerpts: list[Excerpt]

    @property
    def best(self) -> LabelScore | None:
        """Of the best labels of each kind, the one whose F1 is furthest above that of shuffled
        labels; None where there is none.
        """
        first = {one.kind: one for one in reversed(self.labels)}
        told = [one for one in first.values() if not math.isnan(one.f1)]
        return max(told, key=_above_chance, default=None)

    def plot(self, top: int = 6) -> alt.ConcatChart:
        """Its highest peaks: the activation around each, over what is heard."""
        best = self.best
        told = "" if best is None else f": {best.kind} {best.label} (F1 {best.f1:.2f})"
        return excerpts_figure(self.excerpts[:top], title=f"Feature {self.number}{told}")

    def under(self, kind: str) -> list[str]:
        """The labels of a kind that are at its peaks, each once."""
        return list(dict.fromkeys(one.under[kind] for one in self.excerpts if kind in one.under))


def _above_chance(one: LabelScore) -> float:
    return one.f1 - (0.0 if math.isnan(one.shuffled) else one.shuffled)
