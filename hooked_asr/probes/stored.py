"""Probes of a store of features: some of its rows, each with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from hooked_asr.features import FeatureStore, Rows
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.fitting import fit_probes
from hooked_asr.probes.origin import ProbeOrigin
from hooked_asr.probes.question import Label
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

    Raises `ProbeError` for a column that is not there or empty, and as `fit_probes`.
    """
    return fit_rows(store, label_rows(store, label, label), sites, **options)


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows of a store, what is to be told of each, and which of them are no independent ones."""

    name: str
    rows: Int[np.ndarray, "_"]
    labels: list[Label]
    groups: list[str]


def label_rows(store: FeatureStore, label: str, name: str) -> LabelledRows:
    """The rows that have a label in a column of the store's table.

    Raises `ProbeError` where there is no such column, or nothing in it.
    """
    table = store.table()
    if label not in table:
        raise ProbeError(f"columns of the store are {', '.join(table)}; got {label!r}")
    rows = np.flatnonzero(table[label].notna())
    if not rows.size:
        raise ProbeError(
            f"no row of the store has a label {label!r}: fill in that column, or name another"
        )
    chosen = table.iloc[rows]
    return LabelledRows(name, rows, chosen[label].tolist(), _groups(chosen))


def chosen_rows(
    store: FeatureStore, name: str, rows: Sequence[int], labels: Sequence[Label]
) -> LabelledRows:
    """These rows with these labels; groups are the store's."""
    places = np.array(rows, dtype=np.int64)
    return LabelledRows(name, places, list(labels), _groups(store.table().iloc[places]))


def fit_rows(
    store: FeatureStore,
    asked: LabelledRows,
    sites: Sequence[Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
    **options: Any,
) -> ProbeResult:
    """`fit_probes` of sites of a store, by default all, on some of its rows.

    `baselines`: a matrix with a row for each of the store's, or one for each site.
    """
    beside = {
        name: {site: _Chosen(x, asked.rows) for site, x in one.items()}
        if isinstance(one, Mapping)
        else _Chosen(one, asked.rows)
        for name, one in (baselines or {}).items()
    }
    return fit_probes(
        {str(one): _Chosen(store[one], asked.rows) for one in sites or store.sites},
        asked.labels,
        groups=asked.groups,
        name=asked.name,
        origin=ProbeOrigin(str(store.index["model"]), store.fingerprint, store.pool),
        baselines=beside,
        **options,
    )


class _Chosen:
    """Some rows of a matrix; they are read when they are asked for."""

    def __init__(self, x: Rows | np.ndarray, which: Int[np.ndarray, "_"]) -> None:
        self._x, self._which = x, which

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._x[self._which].astype(dtype or self._x.dtype, copy=False)


def _groups(table: pd.DataFrame) -> list[str]:
    pairs = zip(table["clip"], table["group"], strict=True)
    return [f"clip {clip}" if pd.isna(group) else f"group {group}" for clip, group in pairs]
