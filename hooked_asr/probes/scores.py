"""How well rows were told, with the interval around each score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float64

from hooked_asr.probes.estimators import Outputs, Targets, logits
from hooked_asr.probes.question import Rows

CLASSIFICATION = ("accuracy", "balanced_accuracy", "f1", "auc")
REGRESSION = ("r2", "mae", "pearson")
LOWER_IS_BETTER = ("mae",)

_LEVEL = 0.95
_BLOCK = 2**22  # counts held at once: 32 MiB

Counts = Float64[np.ndarray, "sample row"]  # how often each row is in each sample
Values = Float64[np.ndarray, " sample"]


@dataclass(frozen=True)
class Score:
    """A score and the ends of its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float


def score_names(task: str) -> tuple[str, ...]:
    return CLASSIFICATION if task == "classification" else REGRESSION


def scores(
    task: str, outputs: Outputs, targets: Targets, groups: Rows, n_resamples: int, seed: int
) -> dict[str, Score]:
    """All scores of a task, with percentile intervals over resampled groups.

    `groups`: a number for each row, from 0. Both ends are NaN where there are fewer than two. A
    resample in which a score is not defined (nothing of a class in it) is left out.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    samples = _resamples(groups, n_resamples, seed) if groups.max() > 0 else ()
    whole = np.ones((1, len(targets)))
    blocks = [_scores(task, outputs, targets, counts) for counts in chain([whole], samples)]
    joined = {name: np.concatenate([one[name] for one in blocks]) for name in blocks[0]}
    return {name: _score(values[0], values[1:]) for name, values in joined.items()}


def spread(found: list[dict[str, Score]]) -> dict[str, Score]:
    """The mean of scores of several runs, and the interval that holds 95 % of them."""
    columns = {name: np.array([one[name].value for one in found]) for name in found[0]}
    return {name: _score(_mean(values[None])[0], values) for name, values in columns.items()}


def _score(value: float, drawn: Values) -> Score:
    known = drawn[np.isfinite(drawn)]
    ends = (1 - _LEVEL) / 2, (1 + _LEVEL) / 2
    low, high = np.quantile(known, ends) if known.size else (np.nan, np.nan)
    return Score(float(value), float(low), float(high))


def _resamples(groups: Rows, n_resamples: int, seed: int) -> Iterator[Counts]:
    """How often each row is drawn, where as many groups are drawn with replacement."""
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(groups))
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = rng.integers(0, n_groups, (n, n_groups)) + n_groups * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups)
        yield counts[:, groups].astype(np.float64)


def _scores(task: str, outputs: Outputs, targets: Targets, counts: Counts) -> dict[str, Values]:
    with np.errstate(divide="ignore", invalid="ignore"):
        if task == "regression":
            return _of_numbers(outputs[:, 0], targets, counts)
        return _of_classes(logits(outputs), targets, counts)


# --- Classes --------------------------------------------------------------------------------------


def _of_classes(
    logits: Float64[np.ndarray, "row class"], targets: Targets, counts: Counts
) -> dict[str, Values]:
    told = logits.argmax(1)
    classes = range(logits.shape[1])
    right = counts @ np.stack([(targets == k) & (told == k) for k in classes], 1).astype(float)
    true = counts @ np.stack([targets == k for k in classes], 1).astype(float)
    predicted = counts @ np.stack([told == k for k in classes], 1).astype(float)
    f1 = 2 * right / (true + predicted)
    return {
        "accuracy": right.sum(1) / counts.sum(1),
        "balanced_accuracy": _mean(right / true),
        "f1": f1[:, 1] if len(classes) == 2 else _mean(f1),
        "auc": _auc(logits, targets, counts),
    }


def _auc(logits: Float64[np.ndarray, "row class"], targets: Targets, counts: Counts) -> Values:
    """The area under the ROC curve: each class against the rest, then the mean over classes."""
    n_classes = logits.shape[1]
    if n_classes == 2:
        return _area(logits[:, 1] - logits[:, 0], targets == 1, counts)
    ahead = np.exp(logits - logits.max(1, keepdims=True))
    shares = ahead / ahead.sum(1, keepdims=True)
    areas = [_area(shares[:, k], targets == k, counts) for k in range(n_classes)]
    return _mean(np.stack(areas, 1))


def _area(
    values: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"], counts: Counts
) -> Values:
    """How often a positive row has the higher value of a pair; a tie counts half."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    here = counts[:, order]
    above = np.add.reduceat(here * positive[order], starts, axis=1)
    below = np.add.reduceat(here * ~positive[order], starts, axis=1)
    won = (above * (below.cumsum(1) - below / 2)).sum(1)
    return won / (above.sum(1) * below.sum(1))


def _mean(values: Float64[np.ndarray, "sample column"]) -> Values:
    """The mean of the columns in which there is a number."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


# --- Numbers --------------------------------------------------------------------------------------


def _of_numbers(
    told: Float64[np.ndarray, " row"], targets: Targets, counts: Counts
) -> dict[str, Values]:
    total = counts.sum(1)
    # Moments of large numbers that hardly vary would lose their digits.
    x, y = told - told.mean(), targets - targets.mean()
    mean_x, mean_y = counts @ x / total, counts @ y / total
    var_x = counts @ x**2 / total - mean_x**2
    var_y = counts @ y**2 / total - mean_y**2
    covariance = counts @ (x * y) / total - mean_x * mean_y
    return {
        "r2": 1 - counts @ (told - targets) ** 2 / total / var_y,
        "mae": counts @ np.abs(told - targets) / total,
        "pearson": covariance / np.sqrt(var_x * var_y),
    }
