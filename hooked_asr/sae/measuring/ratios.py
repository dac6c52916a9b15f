"""Sums over sums, and how sure they are: resampled by clips, or by groups of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and both ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def ratio(
    above: Float64[np.ndarray, " clip"],
    below: Float64[np.ndarray, " clip"],
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The sum of what is above over that below, with its percentile interval.

    Every clip brings its share of both sums; `groups` are drawn whole, as `bootstrap_means` does.
    Clips for which either is NaN are left out. All is NaN where nothing is below.

    >>> found = ratio(np.array([1.0, 2.0]), np.array([4.0, 8.0]))
    >>> found.value, found.low, found.high
    (0.25, 0.25, 0.25)

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    known = ~(np.isnan(above) | np.isnan(below))
    ids = np.arange(len(above)) if groups is None else _numbered(groups)
    _, group = np.unique(ids[known], return_inverse=True)
    both = np.stack([above[known], below[known]])
    if not both[1].sum():
        return Estimate(np.nan, np.nan, np.nan)
    value = both[0].sum() / both[1].sum()
    n_groups = int(group.max()) + 1
    if n_groups < 2:
        return Estimate(float(value), np.nan, np.nan)
    sums = np.zeros((2, n_groups))
    np.add.at(sums.T, group, both.T)
    low, high = _interval(sums, level, seed)
    return Estimate(float(value), low, high)


def _interval(sums: Float64[np.ndarray, "2 group"], level: float, seed: int) -> tuple[float, float]:
    rng, n_groups = np.random.default_rng(seed), sums.shape[1]
    ratios = np.empty(N_RESAMPLES)
    for i in range(N_RESAMPLES):  # one at a time: many clips would not fit at once
        drawn = rng.integers(0, n_groups, n_groups)
        top, bottom = sums[:, drawn].sum(1)
        ratios[i] = top / bottom if bottom else np.nan
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _numbered(groups: Sequence[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in groups], dtype=int)
