"""LEACE: the least change of features that hides a concept from every linear probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.concepts.erasure import Erasure
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.concepts.features import as_doubles, as_features, weights_of
from hooked_asr.concepts.moments import Moments
from hooked_asr.interventions import Site

# Of the largest correlation of a concept with features: what is below is rounding.
_CORRELATED = 1e-6


def fit_erasure(
    features: Any,
    labels: Any,
    site: Site | str,
    *,
    shrinkage: float = 0.0,
    name: str = "concept",
    model: Any = None,
) -> Erasure:
    """The affine map that erases a concept from features, and changes them least in doing so.

    >>> features = [[0.0, 1.0], [2.0, 1.5], [0.0, 2.0]]
    >>> erasure = fit_erasure(features, ["a", "b", "a"], "encoder.0.mlp")
    >>> erasure.rank, erasure.counts
    (1, {'a': 2, 'b': 1})

    - `features`: `[sample d]` of the site.
    - `labels`: the class of each sample; or numbers `[sample]` or `[sample c]` in floating point.
    - `shrinkage`: of the features' covariance, from 0 towards 1: a multiple of the identity with
      the same trace. The concept is erased from these very samples all the same; with few samples
      for so many dimensions the map is less of a chance one, and changes more than the least.
    - `model`: the model they were read in, to keep its name and its weights' fingerprint.

    On these samples no linear probe, by any convex loss, then does better than a constant.

    Raises `ConceptError` for features that are not finite, labels that are not as many, or of one
    class alone.

    Source: "LEACE: Perfect linear concept erasure in closed form" (2023), theorem 4.3.
    """
    fitter = ErasureFitter(None if _are_numbers(labels) else sorted(set(_classes(labels)), key=str))
    fitter.update(features, labels)
    return fitter.fit(site, shrinkage=shrinkage, name=name, model=model)


class ErasureFitter:
    """`fit_erasure` for more samples than memory holds, batch by batch.

        fitter = ErasureFitter(["de", "en"])
        for features, labels in batches:
            fitter.update(features, labels)
        erasure = fitter.fit("encoder.2.resid_post")

    `classes`: all that there are; None for a concept of numbers.
    """

    def __init__(self, classes: Sequence[str | int | bool] | None = None) -> None:
        self.classes = None if classes is None else list(classes)
        self.counts: Counter[str | int | bool] = Counter()
        self._moments: Moments | None = None

    def update(self, features: Any, labels: Any) -> None:
        """Take in more samples: see `fit_erasure`.

        Raises `ConceptError` for features of another width, or labels that are not as many, or of
        no known class.
        """
        x = as_features(features, "features")
        z = self._encoded(labels)
        if len(z) != len(x):
            raise ConceptError(f"{len(x)} samples take as many labels; got {len(z)}")
        if self._moments is None:
            self._moments = Moments(x.shape[1], z.shape[1])
        d, c = len(self._moments.mean), len(self._moments.concept_mean)
        if (x.shape[1], z.shape[1]) != (d, c):
            raise ConceptError(
                f"features have {d} dimensions and concepts {c}; this batch {x.shape[1]} and "
                f"{z.shape[1]}"
            )
        self._moments.update(x, z)

    def fit(
        self, site: Site | str, *, shrinkage: float = 0.0, name: str = "concept", model: Any = None
    ) -> Erasure:
        """The erasure, by all samples so far.

        Raises `ConceptError` for no samples, one class alone, or a concept that never changes.
        """
        if self._moments is None:
            raise ConceptError("there are no samples yet: update with some")
        if not 0 <= shrinkage <= 1:
            raise ConceptError(f"shrinkage is 0 to 1; got {shrinkage}")
        if self.classes is not None and len(self.counts) < 2:
            raise ConceptError(
                f"a concept is told apart by two classes at least; got {list(self.counts)} alone"
            )
        left, right = _leace(self._moments, shrinkage)
        about, weights = weights_of(model)
        return Erasure(
            left,
            right,
            self._moments.mean.clone(),
            site,
            counts={str(one): self.counts[one] for one in self.classes or []},
            name=name,
            model=about,
            weights=weights,
        )

    def _encoded(self, labels: Any) -> Float64[Tensor, "sample c"]:
        if self.classes is None:
            numbers = as_doubles(labels)
            return as_features(numbers[:, None] if numbers.ndim == 1 else numbers, "labels")
        ids = {one: i for i, one in enumerate(self.classes)}
        found = _classes(labels)
        unknown = [one for one in found if one not in ids]
        if unknown:
            raise ConceptError(f"{unknown[0]!r} is no class; there are {self.classes}")
        self.counts.update(found)
        return F.one_hot(torch.tensor([ids[one] for one in found]), len(ids)).double()


def _leace(
    moments: Moments, shrinkage: float
) -> tuple[Float64[Tensor, "d rank"], Float64[Tensor, "rank d"]]:
    """`W⁺ U` and `Uᵀ W`: W whitens the features, U spans what the whitened share with the concept.

    Of features that lie in a subspace (fewer samples than dimensions, say) W is a pseudo-inverse.
    """
    sigma = moments.covariance
    d = len(sigma)
    if shrinkage:
        isotropic = torch.eye(d, dtype=sigma.dtype) * sigma.trace() / d
        sigma = (1 - shrinkage) * sigma + shrinkage * isotropic
    variances, axes = torch.linalg.eigh(sigma)
    spread = variances > variances[-1] * d * torch.finfo(sigma.dtype).eps
    axes, deviations = axes[:, spread], variances[spread].sqrt()
    # In the coordinates of `axes`, where whitening is a division.
    shared = axes.T @ moments.cross_covariance / deviations[:, None]
    u, strengths, _ = torch.linalg.svd(shared, full_matrices=False)
    u = u[:, strengths > _CORRELATED * max(strengths.tolist(), default=0.0)]
    if not u.shape[1]:
        raise ConceptError("the features tell nothing of the concept: there is nothing to erase")
    return axes @ (deviations[:, None] * u), (u / deviations[:, None]).T @ axes.T


def _classes(labels: Any) -> list[str | int | bool]:
    """Labels as plain values."""
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    odd = [one for one in values if not isinstance(one, str | int | bool)]
    if odd:
        raise ConceptError(f"a sample's class is a text or a whole number; got {odd[0]!r}")
    return values


def _are_numbers(labels: Any) -> bool:
    """Whether labels are numbers, and no classes."""
    if isinstance(labels, Tensor):
        return labels.is_floating_point()
    kind = getattr(getattr(labels, "dtype", None), "kind", None)
    if kind is not None:
        return bool(kind == "f")
    first: Any = next(iter(labels), None) if isinstance(labels, Iterable) else None
    return isinstance(first, float) or (isinstance(first, Sequence) and not isinstance(first, str))
