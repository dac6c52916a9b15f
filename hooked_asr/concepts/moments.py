"""Means and covariances of features and a concept, gathered batch by batch."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor


class Moments:
    """What LEACE needs to know of features `[sample d]` and a concept `[sample c]`.

    Batches are merged by Chan, Golub and LeVeque's rule ("Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", 1979), in double precision: large means cost no
    digits.
    """

    def __init__(self, d: int, c: int) -> None:
        self.n = 0
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.concept_mean = torch.zeros(c, dtype=torch.float64)
        self._scatter = torch.zeros(d, d, dtype=torch.float64)
        self._cross = torch.zeros(d, c, dtype=torch.float64)

    def update(self, x: Float64[Tensor, "sample d"], z: Float64[Tensor, "sample c"]) -> None:
        """Take in more samples."""
        n, seen = len(x), self.n
        self.n += n
        own, concept = x - x.mean(0), z - z.mean(0)
        step, concept_step = x.mean(0) - self.mean, z.mean(0) - self.concept_mean
        between = n * seen / self.n
        self._scatter += own.T @ own + between * torch.outer(step, step)
        self._cross += own.T @ concept + between * torch.outer(step, concept_step)
        self.mean += n / self.n * step
        self.concept_mean += n / self.n * concept_step

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """Of the features."""
        return self._scatter / self.n

    @property
    def cross_covariance(self) -> Float64[Tensor, "d c"]:
        """Of the features with the concept."""
        return self._cross / self.n
