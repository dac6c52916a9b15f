"""What a feature is active on: which share of its activation falls on each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hooked_asr.sae.reading.row_labels import UNKNOWN, RowLabels

NO_LABEL = "–"


@dataclass(frozen=True, eq=False)
class Purity:
    """Shares of each feature's activation, and of its active rows, by label.

    - `names`: of the labels, `NO_LABEL` (none of them) the last.
    - `mass`: of the sum of its activations; `active`: of the rows in which it is active.
    - `base`: of all rows.

    Rows of clips of which nothing is known do not count. All is 0 for a feature that is never
    active in the others.
    """

    kind: str
    names: list[str]
    mass: Float[np.ndarray, "feature label"]
    active: Float[np.ndarray, "feature label"]
    base: Float[np.ndarray, " label"]


def label_sums(
    labels: RowLabels,
    rows: Int[np.ndarray, " active"],
    values: Float[np.ndarray, " active"],
) -> tuple[Float[np.ndarray, " label"], Float[np.ndarray, " label"]]:
    """A feature's activation on each label, and in how many rows; on none of them the last."""
    n, codes = len(labels.names), labels.codes[rows]
    known = codes != UNKNOWN
    own = np.where(codes < 0, n, codes)[known]
    # Of nothing at all numpy counts in whole numbers.
    mass = np.bincount(own, weights=values[known], minlength=n + 1).astype(float)
    return mass, np.bincount(own, minlength=n + 1).astype(float)


def purity(
    labels: RowLabels,
    mass: Sequence[Float[np.ndarray, " label"]],
    active: Sequence[Float[np.ndarray, " label"]],
) -> Purity:
    """Sums of all features (see `label_sums`) as shares."""
    n = len(labels.names)
    known = labels.codes[labels.codes != UNKNOWN]
    base = np.bincount(np.where(known < 0, n, known), minlength=n + 1).astype(float)
    shape = (len(mass), n + 1)
    return Purity(
        labels.kind,
        [*labels.names, NO_LABEL],
        _shares(np.array(mass, float).reshape(shape)),
        _shares(np.array(active, float).reshape(shape)),
        _shares(base[None])[0],
    )


def _shares(sums: np.ndarray) -> Float[np.ndarray, "row label"]:
    total = sums.sum(1, keepdims=True)
    shares: np.ndarray = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    return shares.astype(np.float32)
