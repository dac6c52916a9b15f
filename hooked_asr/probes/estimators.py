"""The two kinds of probe, through scikit-learn: logistic regression and ridge regression.

Both are linear maps of standardised features under an L2 penalty, which is chosen by
cross-validation among the rows that are fitted to. Mean and scale are those of these rows too, and
are folded into the weights, so that a fitted map takes features as they are.

Logistic regression is solved by L-BFGS, multinomial for more than two classes: its cost grows with
rows x features x classes, where that of Newton's method grows with (features x classes)^2 or more.
Penalties are tried from the strongest on, each starting from the weights of the one before. Where
there are more features than rows, the rows are first rotated into the space that they span: an L2
penalty is blind to rotations, so the solution is the same one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Num
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.preprocessing import StandardScaler

from hooked_asr.probes.features import Features
from hooked_asr.probes.folds import Fold

Outputs = Float64[np.ndarray, "row out"]
Targets = Num[np.ndarray, " row"]

CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, the inverse of the penalty: of a logistic regression
ALPHAS = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0)  # the penalty: of a ridge regression

_ITERATIONS = 2000
_NEVER = 50.0  # the logit of a class without a row to fit to, below all others


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map: one output for two classes or a number, otherwise one for each class."""

    weights: Float64[np.ndarray, "out d"]
    bias: Float64[np.ndarray, " out"]

    def __call__(self, features: Features) -> Outputs:
        return features @ self.weights.T + self.bias


@runtime_checkable
class Estimator(Protocol):
    """How a linear map is fitted under each of a few penalties, strongest first."""

    penalties: tuple[float, ...]

    def path(
        self, features: Features, targets: Targets, penalties: Sequence[float]
    ) -> Iterator[Linear]:
        """A map for each penalty."""

    def loss(self, outputs: Outputs, targets: Targets) -> float:
        """The mean over rows of what the penalty is chosen by."""


class Standardised:
    """Rows to fit to, once for any number of targets and penalties."""

    def __init__(self, features: Features) -> None:
        self._scaler = StandardScaler().fit(features)
        self._rows = self._scaler.transform(features)
        self._basis = None
        if self._rows.shape[1] > self._rows.shape[0]:
            self._basis, upper = np.linalg.qr(self._rows.T)
            self._rows = np.ascontiguousarray(upper.T)

    def fitted(
        self, estimator: Estimator, targets: Targets, penalties: Sequence[float]
    ) -> Iterator[Linear]:
        """A map for each penalty, of features as they are."""
        for found in estimator.path(self._rows, targets, penalties):
            weights = found.weights if self._basis is None else found.weights @ self._basis.T
            weights = weights / self._scaler.scale_
            yield Linear(weights, found.bias - weights @ self._scaler.mean_)


def choose(
    estimator: Estimator, features: Features, targets: Targets, folds: Sequence[Fold]
) -> float:
    """The penalty with the least loss on held-out rows, each fold's mean counting alike: of several
    the strongest.

    Without folds, the middle one.
    """
    penalties = estimator.penalties
    if not folds:
        return penalties[len(penalties) // 2]
    losses = np.zeros(len(penalties))
    for train, test in folds:
        maps = Standardised(features[train]).fitted(estimator, targets[train], penalties)
        losses += [estimator.loss(one(features[test]), targets[test]) for one in maps]
    return penalties[int(losses.argmin())]


class Logistic:
    """Logistic regression; the loss is the negative log-likelihood (nats)."""

    penalties: tuple[float, ...] = CS

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    def path(
        self, features: Features, targets: Targets, penalties: Sequence[float]
    ) -> Iterator[Linear]:
        present = np.unique(targets)
        if len(present) == 1:
            blank = np.zeros((1, features.shape[1])), np.zeros(1)
            yield from (self._placed(*blank, present) for _ in penalties)
            return
        model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
        for c in penalties:
            with warnings.catch_warnings():
                # Weights that still creep after so many steps tell no row differently.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=c).fit(features, targets)
            yield self._placed(model.coef_.copy(), model.intercept_.copy(), present)

    def loss(self, outputs: Outputs, targets: Targets) -> float:
        found = logits(outputs)
        own = found[np.arange(len(targets)), targets]
        return float((np.logaddexp.reduce(found, axis=1) - own).mean())

    def _placed(self, weights: Any, bias: Any, present: Targets) -> Linear:
        """Outputs of all classes, where some have no row to fit to."""
        if len(present) == self.n_classes:
            return Linear(weights, bias)
        if self.n_classes == 2:
            return Linear(weights, bias + (_NEVER if present[0] else -_NEVER))
        if len(present) == 2:
            weights, bias = np.stack([0 * weights[0], weights[0]]), np.array([0.0, bias[0]])
        all_weights = np.zeros((self.n_classes, weights.shape[1]))
        all_bias = np.full(self.n_classes, -_NEVER)
        all_weights[present], all_bias[present] = weights, bias
        return Linear(all_weights, all_bias)


class Ridge:
    """Ridge regression; the loss is the squared error."""

    penalties: tuple[float, ...] = ALPHAS

    def path(
        self, features: Features, targets: Targets, penalties: Sequence[float]
    ) -> Iterator[Linear]:
        for alpha in penalties:
            model = RidgeRegression(alpha=alpha).fit(features, targets)
            yield Linear(model.coef_[None].copy(), np.array([model.intercept_]))

    def loss(self, outputs: Outputs, targets: Targets) -> float:
        return float(np.square(outputs[:, 0] - targets).mean())


def logits(outputs: Outputs) -> Float64[np.ndarray, "row class"]:
    """An output for each class: a lone one is that of the second, against 0."""
    if outputs.shape[1] > 1:
        return outputs
    return np.concatenate([np.zeros_like(outputs), outputs], axis=1)
