"""Features, and where they were read: checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from hooked_asr.concepts.errors import ConceptError
from hooked_asr.interventions import Site
from hooked_asr.weights.fingerprint import fingerprint


def as_site(site: Site | str) -> Site:
    """A site, or its text; see `Site.parse`."""
    return Site.parse(site) if isinstance(site, str) else site


def placed(
    site: Site,
    positions: SupportsIndex | Iterable[SupportsIndex] | slice | None,
    seconds: Iterable[SupportsFloat] | None,
) -> Site:
    """The site, at these positions or seconds where any are given."""
    if positions is None and seconds is None:
        return site
    return Site(site.hook, site.heads, positions, seconds, site.neurons)


def as_features(features: Any, what: str) -> Float64[Tensor, "sample d"]:
    """Rows of features in double precision; a 2-D array or tensor.

    Raises `ConceptError` for another shape, no row, or a number that is not finite.
    """
    made = as_doubles(features)
    if made.ndim != 2 or not len(made):
        raise ConceptError(
            f"{what} are [sample d], one row at least; got {list(made.shape)}. Average positions "
            "first, or flatten them into samples"
        )
    bad = (~made.isfinite()).any(1)
    if bad.any():
        raise ConceptError(f"{what}: row {int(bad.int().argmax())} holds NaN or infinity")
    return made


def as_doubles(numbers: Any) -> Float64[Tensor, "..."]:
    """Numbers of any kind as a tensor in double precision, on the CPU."""
    if isinstance(numbers, Tensor):
        return numbers.detach().cpu().double()
    return torch.from_numpy(np.array(numbers, dtype=np.float64))  # a copy: files may be read-only


def weights_of(model: Any | None) -> tuple[str, str]:
    """A model's name and the fingerprint of its weights; empty where there is none."""
    return ("", "") if model is None else (str(model.name), fingerprint(model))


def check_weights(what: str, name: str, weights: str, model: Any) -> None:
    """Raises `ConceptError` where the model has other weights than those it was found with."""
    if weights and fingerprint(model) != weights:
        raise ConceptError(
            f"the {what} was found with the weights of {name!r}, and {model.name!r} has others: "
            "find it anew with this model"
        )
