"""How many recordings any of many sites, or the best of them, comes to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from hooked_asr.patching.shares import share_interval

Counted = Bool[np.ndarray, "clip site alpha"]


def reach(
    counted: Counted,
    stacks: Mapping[str, Bool[np.ndarray, " site"]],
    pairs: Sequence[Hashable],
    names: Sequence[str],
) -> pd.DataFrame:
    """A row for any site of each stack, any at all, the best, and the best chosen elsewhere.

    `pairs`: what each recording is about; `names`: of each site and alpha, row-major.
    """
    places = {f"any {name} site": of for name, of in stacks.items() if of.any()}
    places["any site"] = np.ones(counted.shape[1], bool)
    flat = counted.reshape(len(counted), -1)
    rows = {
        name: _row(_any(counted[:, of]), int(of.sum()) * counted.shape[2])
        for name, of in places.items()
    }
    best = int(flat.sum(0).argmax())
    where = names[best] if flat[:, best].any() else ""
    rows["best single site"] = _row(flat[:, best], flat.shape[1], where)
    rows["best, chosen on other words"] = _row(_chosen_elsewhere(flat, pairs), 1)
    return pd.DataFrame.from_dict(rows, orient="index")


def _row(mended: Bool[np.ndarray, " clip"], tries: int, site: str = "") -> dict[str, object]:
    n, of = int(mended.sum()), len(mended)
    low, high = share_interval(n, of)
    share = n / of
    row: dict[str, object] = {"n": n, "of": of, "share": share, "low": low, "high": high}
    return row | {"tries": tries, "site": site}


def _any(counted: Counted) -> Bool[np.ndarray, " clip"]:
    return np.array(counted.any((1, 2)))


def _chosen_elsewhere(
    flat: Bool[np.ndarray, "clip try"], pairs: Sequence[Hashable]
) -> Bool[np.ndarray, " clip"]:
    """Whether each recording is mended by what mends most recordings of other words."""
    found = np.zeros(len(flat), bool)
    for pair in set(pairs):
        own = np.array([one == pair for one in pairs])
        found[own] = flat[own, flat[~own].sum(0).argmax()]
    return found
