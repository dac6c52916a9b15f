"""Feature matrices, checked, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from hooked_asr.probes.errors import ProbeError

Features = Float64[np.ndarray, "row d"]


def as_features(site: str, features: Any, n_rows: int) -> Features:
    """A matrix `[row d]` (an array, tensor, or memory-mapped one) as float64.

    Raises `ProbeError` for another shape, NaN or infinity, or features of which none varies.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu().double().numpy()
    found = np.asarray(features, dtype=np.float64)
    if found.ndim != 2:
        raise ProbeError(f"{site}: features are [row d]; got {list(found.shape)}")
    if len(found) != n_rows:
        raise ProbeError(f"{site}: {n_rows} labels have as many rows of features; got {len(found)}")
    finite = np.isfinite(found)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        others = int((~finite.all(1)).sum()) - 1
        raise ProbeError(
            f"{site}: row {row} has {found[row, column]} in column {column}"
            + (f", and {others} other rows have the like" if others else "")
            + ": leave such rows out"
        )
    if not found.size or (found == found[0]).all():
        raise ProbeError(
            f"{site}: the features are constant, all {n_rows} rows are the same: nothing can be "
            "told from them"
        )
    return found
