"""Where two classes of samples lie along a direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hooked_asr.concepts.errors import ConceptError
from hooked_asr.concepts.features import as_features


@dataclass(frozen=True)
class ClassMeans:
    """Where two classes lie along a direction, as coordinates along its unit vector.

    `negative`, `positive`: the means, of `n_negative` and `n_positive` samples.
    """

    negative: float
    positive: float
    n_negative: int
    n_positive: int

    @property
    def distance(self) -> float:
        """From the negative class to the positive one."""
        return self.positive - self.negative


def means_along(vector: Tensor, positive: Any, negative: Any) -> ClassMeans:
    """The class means' coordinates along a vector.

    Raises `ConceptError` for features of another width, or classes with the same mean there.
    """
    first, second = as_features(positive, "positive"), as_features(negative, "negative")
    check_widths(len(vector), positive=first, negative=second)
    unit = vector.double() / vector.double().norm()
    high, low = float(first.mean(0) @ unit), float(second.mean(0) @ unit)
    if math.isclose(high, low, rel_tol=1e-12):
        raise ConceptError("along this direction both classes have the same mean")
    return ClassMeans(low, high, len(second), len(first))


def check_widths(width: int, **features: Tensor) -> None:
    """Raises `ConceptError` where features are not so many dimensions wide."""
    for what, rows in features.items():
        if rows.shape[1] != width:
            raise ConceptError(
                f"{what} has {rows.shape[1]} dimensions, the others {width}: read both at one site"
            )
