"""How sure a mean is: bootstrap intervals, over samples or whole groups of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from hooked_asr.errors import HookedASRError

N_RESAMPLES = 5000
_METHODS = ("bca", "percentile")
_BLOCK = 2**23  # resampled means held at once: 64 MiB


class BootstrapError(HookedASRError):
    """An interval that cannot be had as asked."""


@dataclass(frozen=True, eq=False)
class Means:
    """Means over the first axis of the values, with the interval around each.

    `n`: how many values there are, NaN not counted.
    """

    mean: Float64[np.ndarray, "..."]
    low: Float64[np.ndarray, "..."]
    high: Float64[np.ndarray, "..."]
    n: Int[np.ndarray, "..."]


def bootstrap_means(
    values: Float[np.ndarray, "sample ..."],
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    method: str = "bca",
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Means:
    """The mean of each column, and where it might as well lie had other samples been drawn.

    >>> about = bootstrap_means(np.array([1.0, 2.0, 3.0, 4.0]), method="percentile")
    >>> about.mean.item(), about.low.item(), about.high.item()
    (2.5, 1.5, 3.5)

    - `values`: NaN stands for a missing one.
    - `groups`: the group of each sample: those of one group (a speaker, a recording) are drawn
      together, as samples that resemble each other say less than as many that do not. The mean is
      over samples all the same.
    - `level`: how often such an interval holds the true mean.
    - `method`: "percentile", or "bca": corrected for bias, and for a spread that depends on the
      mean.
    - `seed`: columns are resampled alike.

    Both ends are NaN where there are fewer than two groups, or values that are not finite.

    Raises `BootstrapError` for groups, level, method or resamples that make no sense.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), sections 13.3 and 14.3;
    groups: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    _check(values, groups, level, method, n_resamples)
    shape = values.shape[1:]
    columns = values.reshape(len(values), -1).astype(np.float64)
    ids = range(len(values)) if groups is None else groups
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(one, len(numbers)) for one in ids], dtype=int)
    ends = np.full((2, columns.shape[1]), np.nan)
    known = ~np.isnan(columns)
    # Columns that miss the same samples are resampled together.
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for i, rows in enumerate(patterns.T):
        these = which.reshape(-1) == i
        ends[:, these] = _ends(
            columns[np.ix_(rows, these)], group[rows], level, method, n_resamples, seed
        )
    n = known.sum(0)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, columns, 0.0).sum(0) / np.where(n, n, np.nan)
    low, high = (end.reshape(shape) for end in ends)
    return Means(mean.reshape(shape), low, high, n.reshape(shape))


def _check(
    values: Float[np.ndarray, "sample ..."],
    groups: Sequence[Hashable] | None,
    level: float,
    method: str,
    n_resamples: int,
) -> None:
    if groups is not None and len(groups) != len(values):
        raise BootstrapError(f"{len(values)} samples have as many groups; got {len(groups)}")
    if not 0 < level < 1:
        raise BootstrapError(f"a level lies between 0 and 1, as 0.95 does; got {level}")
    if method not in _METHODS:
        raise BootstrapError(f"methods are {' and '.join(map(repr, _METHODS))}; got {method!r}")
    if n_resamples < 1:
        raise BootstrapError(f"at least 1 resample is drawn; got {n_resamples}")


def _ends(
    values: Float64[np.ndarray, "sample column"],
    group: Int[np.ndarray, " sample"],
    level: float,
    method: str,
    n_resamples: int,
    seed: int,
) -> Float64[np.ndarray, "2 column"]:
    """Both ends of the intervals of columns without missing values."""
    ends = np.full((2, values.shape[1]), np.nan)
    _, group = np.unique(group, return_inverse=True)
    n_groups = int(group.max()) + 1 if len(group) else 0
    finite = np.isfinite(values).all(0)
    if n_groups < 2 or not finite.any():
        return ends
    sizes = np.bincount(group).astype(np.float64)
    sums = np.zeros((n_groups, int(finite.sum())))
    np.add.at(sums, group, values[:, finite])
    step = max(1, _BLOCK // n_resamples)
    made = [
        _ends_of_block(sums[:, at : at + step], sizes, level, method, n_resamples, seed)
        for at in range(0, sums.shape[1], step)
    ]
    ends[:, finite] = np.concatenate(made, axis=1)
    return ends


def _ends_of_block(
    sums: Float64[np.ndarray, "group column"],
    sizes: Float64[np.ndarray, " group"],
    level: float,
    method: str,
    n_resamples: int,
    seed: int,
) -> Float64[np.ndarray, "2 column"]:
    resampled = _resampled_means(sums, sizes, n_resamples, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    shares = np.repeat(tails[:, None], sums.shape[1], axis=1)
    if method == "bca":
        shares = _corrected(shares, resampled, sums, sizes)
    resampled.sort(axis=0)
    return _quantiles(resampled, shares)


def _resampled_means(
    sums: Float64[np.ndarray, "group column"],
    sizes: Float64[np.ndarray, " group"],
    n_resamples: int,
    seed: int,
) -> Float64[np.ndarray, "resample column"]:
    """The means of as many groups, drawn with replacement."""
    n_groups = len(sums)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // n_groups)
    means = []
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = rng.integers(0, n_groups, (n, n_groups)) + n_groups * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups)
        counts = counts.astype(np.float64)
        means.append((counts @ sums) / (counts @ sizes)[:, None])
    return np.concatenate(means)


def _corrected(
    shares: Float64[np.ndarray, "2 column"],
    resampled: Float64[np.ndarray, "resample column"],
    sums: Float64[np.ndarray, "group column"],
    sizes: Float64[np.ndarray, " group"],
) -> Float64[np.ndarray, "2 column"]:
    """Which quantiles to take instead: BCa, equations 14.10, 14.14 and 14.15."""
    mean = sums.sum(0) / sizes.sum()
    below = ((resampled < mean).mean(0) + (resampled <= mean).mean(0)) / 2
    least = 0.5 / len(resampled)
    bias = _normal_quantile(below.clip(least, 1 - least))
    without = (sums.sum(0) - sums) / (sizes.sum() - sizes)[:, None]  # each group in turn
    apart = without.mean(0) - without
    spread = 6 * (apart**2).sum(0) ** 1.5
    skew = (apart**3).sum(0) / np.where(spread > 0, spread, np.inf)
    shifted = bias + _normal_quantile(shares)
    return torch.special.ndtr(torch.from_numpy(bias + shifted / (1 - skew * shifted))).numpy()


def _normal_quantile(shares: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return torch.special.ndtri(torch.from_numpy(shares)).numpy()


def _quantiles(
    ordered: Float64[np.ndarray, "resample column"], shares: Float64[np.ndarray, "2 column"]
) -> Float64[np.ndarray, "2 column"]:
    """Each column's own quantiles, between two values in proportion."""
    at = shares * (len(ordered) - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, len(ordered) - 1)
    low = np.take_along_axis(ordered, below, axis=0)
    high = np.take_along_axis(ordered, above, axis=0)
    return low + (high - low) * (at - below)
