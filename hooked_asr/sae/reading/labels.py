"""Which labels a feature goes with: F1 and mutual information, beside those of shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hooked_asr.sae.reading.row_labels import Codes, RowLabels

_LEVELS = 16  # thresholds that are tried: 0, and quantiles of a feature's active values

PerLabel = Float[np.ndarray, " label"]
PerFeature = Float[np.ndarray, "feature label"]


@dataclass(frozen=True, eq=False)
class Association:
    """How well each feature, active above a threshold, tells each label of a kind.

    - `fitted`: F1 on the half of the clips that the threshold was chosen on; `f1`, on the others.
    - `bits`: mutual information of being active and the label being there, on the others (bits).
    - `threshold`: a row counts as active above it.
    - `shuffled`: F1 with shuffled labels, by the same procedure (mean over the shuffles).
    - `chance`: F1 of the best shuffled label, chosen on the first half `[feature]`.
    - `rows`: how many have each label.

    NaN where a label is missing in one half.
    """

    kind: str
    names: list[str]
    fitted: PerFeature
    f1: PerFeature
    bits: PerFeature
    threshold: PerFeature
    shuffled: PerFeature
    chance: Float[np.ndarray, " feature"]
    rows: Int[np.ndarray, " label"]

    def best(self) -> Int[np.ndarray, " feature"]:
        """The label that goes best with each feature on the first half; -1 where none does.

        Chosen there, its F1 on the other half is no lucky one.
        """
        if not self.names:
            return np.full(len(self.fitted), -1)
        found = np.where(np.isfinite(self.fitted), self.fitted, -1.0)
        return np.where(found.max(1) > 0, found.argmax(1), -1)

    def ranked(self, place: int, top: int) -> list[int]:
        """A feature's best labels, by their F1 on the first half."""
        own = np.where(np.isfinite(self.fitted[place]), self.fitted[place], -1.0)
        order = np.argsort(-own, kind="stable")[:top]
        return [int(i) for i in order if own[i] > 0]

    def best_f1(self) -> Float[np.ndarray, " feature"]:
        """F1 of each feature's best label, 0 where it has none."""
        best = self.best()
        if not self.names:
            return np.zeros(len(best))
        return np.where(best < 0, 0.0, self.f1[np.arange(len(best)), best])

    def by_label(self) -> dict[str, float]:
        """F1 of the feature that tells each label best on the first half."""
        best = np.where(np.isfinite(self.fitted), self.fitted, -1.0).argmax(0)
        scores = self.f1[best, np.arange(len(self.names))]
        return {
            name: float(one)
            for name, one in zip(self.names, scores, strict=True)
            if np.isfinite(one)
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """Of one feature and all labels of a kind; see `Association`."""

    fitted: PerLabel
    f1: PerLabel
    bits: PerLabel
    threshold: PerLabel


class LabelScorer:
    """Scores features against one set of codes, one feature after the other.

    - `codes`: the label of each row; `fitted`: the rows to choose thresholds on.
    """

    def __init__(self, codes: Codes, n_labels: int, fitted: Bool[np.ndarray, " row"]) -> None:
        # 0 stands for no label, and -1 for rows that do not count.
        self._codes, self._fitted, self._n = codes + 1, fitted, n_labels
        known = self._codes >= 0
        self._totals = [
            np.bincount(self._codes[known & half], minlength=n_labels + 1)
            for half in (fitted, ~fitted)
        ]

    def score(
        self, rows: Int[np.ndarray, " active"], values: Float[np.ndarray, " active"]
    ) -> Scores:
        """Of a feature that is active in these rows, and nowhere else."""
        codes, fitted = self._codes[rows], self._fitted[rows]
        known = codes >= 0
        codes, fitted, values = codes[known], fitted[known], values[known]
        levels = _levels(values[fitted])
        (first, first_n), (second, second_n) = (
            self._above(codes[half], values[half], levels) for half in (fitted, ~fitted)
        )
        scores = f1(first, first_n[:, None], self._totals[0][1:])
        best = scores.argmax(0)
        labels = np.arange(self._n)
        hits, active = second[best, labels], second_n[best]
        there, n_rows = self._totals[1][1:], int(self._totals[1].sum())
        missing = (self._totals[0][1:] == 0) | (there == 0)
        return Scores(
            np.where(missing, np.nan, scores[best, labels]),
            np.where(missing, np.nan, f1(hits, active, there)),
            np.where(missing, np.nan, mutual_information(hits, active, there, n_rows)),
            levels[best],
        )

    def _above(
        self,
        codes: Int[np.ndarray, " active"],
        values: Float[np.ndarray, " active"],
        levels: Float[np.ndarray, " level"],
    ) -> tuple[Int[np.ndarray, "level label"], Int[np.ndarray, " level"]]:
        """How many rows are above each level, of each label and in all."""
        passed = np.searchsorted(levels, values, side="left")  # levels below each value
        flat = passed * (self._n + 1) + codes
        counts = np.bincount(flat, minlength=(len(levels) + 1) * (self._n + 1))
        table = counts.reshape(len(levels) + 1, self._n + 1)[::-1].cumsum(0)[::-1][1:]
        return table[:, 1:], table.sum(1)


def associate(
    labels: RowLabels, per_feature: Sequence[Scores], shuffles: Sequence[Sequence[Scores]]
) -> Association:
    """All features' scores; `shuffles`: for each, those with shuffled labels."""
    counted = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
    again = [[one.f1 for one in own] for own in shuffles]
    shape = (len(per_feature), len(labels.names))
    return Association(
        labels.kind,
        labels.names,
        _stacked([one.fitted for one in per_feature], shape),
        _stacked([one.f1 for one in per_feature], shape),
        _stacked([one.bits for one in per_feature], shape),
        _stacked([one.threshold for one in per_feature], shape),
        _stacked([_mean(np.array(own)) for own in again], shape),
        np.array([np.mean([_best_of(one) for one in own]) for own in shuffles], np.float32),
        counted.astype(np.int64),
    )


def f1(hits: np.ndarray, active: np.ndarray, there: np.ndarray) -> np.ndarray:
    """2 · hits / (active + there): the harmonic mean of precision and recall; 0 for 0 of 0."""
    return np.asarray(2.0 * hits / np.maximum(active + there, 1))


def mutual_information(
    hits: np.ndarray, active: np.ndarray, there: np.ndarray, n_rows: int
) -> np.ndarray:
    """Of two events in so many rows (bits), from how often both, and each, are the case.

    >>> mutual_information(np.array([2]), np.array([2]), np.array([2]), 4).tolist()
    [1.0]
    """
    total = np.zeros(np.broadcast(hits, active, there).shape)
    if not n_rows:
        return total
    both = [
        (hits, active, there),
        (active - hits, active, n_rows - there),
        (there - hits, n_rows - active, there),
        (n_rows - active - there + hits, n_rows - active, n_rows - there),
    ]
    for n, first, second in both:
        expected = np.maximum(np.asarray(first, float) * second, 1.0)
        ratio = np.where(n > 0, n * float(n_rows) / expected, 1.0)
        total = total + n / n_rows * np.log2(ratio)
    return np.maximum(total, 0.0)


# --- Parts ----------------------------------------------------------------------------------------


def _levels(values: Float[np.ndarray, " active"]) -> Float[np.ndarray, " level"]:
    """0, and quantiles of the active values that leave something above them."""
    if not len(values):
        return np.zeros(1, np.float32)
    at = np.linspace(0, 1, _LEVELS + 1)[1:-1]
    # Of the values themselves: a threshold between two would depend on how it is rounded.
    drawn = np.quantile(values, at, method="lower").astype(np.float32)
    return np.unique(np.concatenate([np.zeros(1, np.float32), drawn]))


def _stacked(rows: Sequence[np.ndarray], shape: tuple[int, int]) -> PerFeature:
    return np.array(rows, np.float32).reshape(shape)


def _mean(scores: Float[np.ndarray, "shuffle label"]) -> PerLabel:
    """Of the shuffles that left the label in both halves."""
    there = np.isfinite(scores)
    total = np.where(there, scores, 0.0).sum(0)
    return np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)


def _best_of(one: Scores) -> float:
    found = np.where(np.isfinite(one.fitted), one.fitted, -1.0)
    if not len(found) or found.max() <= 0:
        return 0.0
    return float(one.f1[found.argmax()])
