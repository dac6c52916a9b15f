"""Interventions by a sparse autoencoder: its reconstruction in place, or some features changed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import SupportsFloat, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from hooked_asr.interventions import Action, Intervention, Site
from hooked_asr.interventions.site import Numbers
from hooked_asr.interventions.span import Span
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.edit_actions import (
    AddFeatures,
    ClampFeatures,
    Dictionary,
    ScaleFeatures,
    Splice,
)
from hooked_asr.sae.errors import SAEError

Positions = Numbers | slice | Span
Seconds = Iterable[SupportsFloat] | None
Features = SupportsIndex | Iterable[SupportsIndex]
Values = Mapping[int, float]


def splice(
    sae: SparseAutoencoder,
    positions: Positions = None,
    seconds: Seconds = None,
    *,
    keep_error: bool = False,
) -> Intervention:
    """Put the autoencoder's reconstruction in place of what it reads.

    With `keep_error`, what it does not explain stays in: nothing changes. `positions` and
    `seconds` as of `Site`.
    """
    return _at(sae, Splice(Dictionary(sae), keep_error), positions, seconds)


def add_features(
    sae: SparseAutoencoder,
    values: Values,
    strength: float = 1.0,
    positions: Positions = None,
    seconds: Seconds = None,
    *,
    units: Float[Tensor, " feature"] | None = None,
) -> Intervention:
    """Add `strength * value` of each feature: `add_features(sae, {17: 4.0})`.

    - `values` are in the features' own units, as `sae.encode` gives them.
    - `units`: of each feature, what 1 means instead, as the greatest that it was ever active.

    Raises `SAEError` for features that the autoencoder does not have, or units of another number.
    """
    features, numbers = _valued(sae, values, units)
    edit = AddFeatures(Dictionary(sae), features, tuple(strength * one for one in numbers))
    return _at(sae, edit, positions, seconds)


def scale_features(
    sae: SparseAutoencoder,
    features: Features,
    by: float,
    positions: Positions = None,
    seconds: Seconds = None,
) -> Intervention:
    """Make features `by` times as active as they are, wherever they are.

    Raises `SAEError` for features that the autoencoder does not have.
    """
    edit = ScaleFeatures(Dictionary(sae), _numbered(sae, features), by)
    return _at(sae, edit, positions, seconds)


def clamp_features(
    sae: SparseAutoencoder,
    values: Values,
    strength: float = 1.0,
    positions: Positions = None,
    seconds: Seconds = None,
    *,
    units: Float[Tensor, " feature"] | None = None,
) -> Intervention:
    """Set features to values everywhere; `strength` is how far on the way from what they are.

    `values` and `units` as of `add_features`. Raises `SAEError` as it does.
    """
    features, numbers = _valued(sae, values, units)
    edit = ClampFeatures(Dictionary(sae), features, numbers, strength)
    return _at(sae, edit, positions, seconds)


def ablate_features(
    sae: SparseAutoencoder,
    features: Features,
    positions: Positions = None,
    seconds: Seconds = None,
) -> Intervention:
    """Take features out, wherever they are active: `scale_features(…, by=0.0)`."""
    return scale_features(sae, features, 0.0, positions, seconds)


# --- Parts ----------------------------------------------------------------------------------------


def _at(
    sae: SparseAutoencoder, action: Action, positions: Positions, seconds: Seconds
) -> Intervention:
    return Intervention(Site(sae.site, positions=positions, seconds=seconds), action)


def _numbered(sae: SparseAutoencoder, features: Features) -> tuple[int, ...]:
    each = features if isinstance(features, Iterable) else [features]
    numbers = tuple(dict.fromkeys(map(operator.index, each)))
    odd = [one for one in numbers if not 0 <= one < sae.n_features]
    if odd or not numbers:
        raise SAEError(
            f"the autoencoder of {sae.site} has features 0 to {sae.n_features - 1}; asked for "
            f"{', '.join(map(str, odd)) or 'none'}"
        )
    return numbers


def _valued(
    sae: SparseAutoencoder, values: Values, units: Float[Tensor, " feature"] | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    features = _numbered(sae, values)
    if units is None:
        return features, tuple(map(float, values.values()))
    if len(units) != sae.n_features:
        raise SAEError(f"{sae.n_features} features take as many units; got {len(units)}")
    sizes = units[list(features)].tolist()
    return features, tuple(
        size * float(one) for size, one in zip(sizes, values.values(), strict=True)
    )
