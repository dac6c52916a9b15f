"""Probes of a store of features: labels and groups by the names of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from hooked_asr.features import FeatureStore, Rows
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.fitting import fit_probes
from hooked_asr.probes.origin import ProbeOrigin
from hooked_asr.probes.result import ProbeResult


def fit_stored(
    store: FeatureStore, label: str, *, sites: Sequence[Any] | None = None, **options: Any
) -> ProbeResult:
    """Probe the sites of a store for one column of its table, as `fit_probes`.

        store = harvest(model, "manifest.csv", "encoder.*.hook_resid_post", out="features")
        print(fit_stored(store, "sex").to_pandas())

    Groups are the store's; rows of a clip without one are a group of their own, as rows of one
    clip are never independent. Rows without the label are left out. `options`: of `fit_probes`,
    but for groups, name and origin; baselines have a row for each row of the store.

    Raises `ProbeError` for a column that is not there, and as `fit_probes`.
    """
    table = store.table()
    if label not in table:
        raise ProbeError(f"columns of the store are {', '.join(table)}; got {label!r}")
    rows = np.flatnonzero(table[label].notna())
    if not rows.size:
        raise ProbeError(f"no row of the store has a label {label!r}")
    table = table.iloc[rows]
    if "baselines" in options and len(rows) < len(store):
        options = options | {"baselines": _chosen(options["baselines"], rows)}
    names = store.sites if sites is None else sites
    return fit_probes(
        {str(one): _Chosen(store[one], rows) for one in names},
        table[label].tolist(),
        groups=_groups(table),
        name=label,
        origin=ProbeOrigin(str(store.index["model"]), store.fingerprint, store.pool),
        **options,
    )


class _Chosen:
    """Some rows of a site; they are read when they are asked for."""

    def __init__(self, rows: Rows, which: Int[np.ndarray, "_"]) -> None:
        self._rows, self._which = rows, which

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._rows[self._which].astype(dtype or self._rows.dtype, copy=False)


def _chosen(baselines: Any, rows: Int[np.ndarray, "_"]) -> dict[str, Any]:
    return {
        name: {site: x[rows] for site, x in one.items()} if hasattr(one, "items") else one[rows]
        for name, one in baselines.items()
    }


def _groups(table: pd.DataFrame) -> list[str]:
    pairs = zip(table["clip"], table["group"], strict=True)
    return [f"clip {clip}" if pd.isna(group) else f"group {group}" for clip, group in pairs]
