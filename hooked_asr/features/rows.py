"""All rows of one site, in the shards where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from hooked_asr.features.errors import FeatureError
from hooked_asr.features.shard_file import plain

Mapped = Callable[[int], Shaped[np.ndarray, "row d"]]


class Rows:
    """A site's rows `[row d]` as an array that lies on the disk: what is asked for is read.

    `rows[5]`, `rows[10:20]`, `rows[[3, 1, 4]]`, `rows[mask]` give numpy arrays, and
    `numpy.asarray(rows)` all of them. What was kept in bfloat16 comes as float32.
    """

    ndim = 2

    def __init__(self, counts: Sequence[int], width: int, dtype: str, mapped: Mapped) -> None:
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._bits = dtype == "<u2"
        self._mapped = mapped
        self.dtype = np.dtype("<f4" if self._bits else dtype)
        self.shape = (int(self._starts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows({self.shape[0]} x {self.shape[1]}, {self.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("rows lie on the disk: they become an array by copying")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, which: Any) -> Float[np.ndarray, "..."]:
        """Raises `IndexError` for rows that are not there."""
        if isinstance(which, slice):
            first, end, step = which.indices(len(self))
            if step == 1:
                return self._run(first, max(first, end))
            return self._scattered(np.arange(first, end, step))
        if isinstance(which, int | np.integer):
            return self._scattered(_numbers([int(which)], len(self)))[0]
        return self._scattered(_numbers(which, len(self)))

    def _run(self, first: int, end: int) -> Float[np.ndarray, "row d"]:
        found = np.empty((end - first, self.shape[1]), self.dtype)
        shards = np.searchsorted(self._starts, [first, end], side="right") - 1
        for shard in range(int(shards[0]), min(int(shards[1]) + 1, len(self._starts) - 1)):
            start = int(self._starts[shard])
            low, high = max(first, start), min(end, int(self._starts[shard + 1]))
            if low < high:
                own = self._mapped(shard)[low - start : high - start]
                found[low - first : high - first] = plain(own, self._bits)
        return found

    def _scattered(self, numbers: Int[np.ndarray, " row"]) -> Float[np.ndarray, "row d"]:
        found = np.empty((len(numbers), self.shape[1]), self.dtype)
        # In the order of the disk, whatever order was asked for.
        order = np.argsort(numbers, kind="stable")
        shards = np.searchsorted(self._starts, numbers[order], side="right") - 1
        for shard in np.unique(shards):
            here = order[shards == shard]
            own = self._mapped(int(shard))[numbers[here] - self._starts[shard]]
            found[here] = plain(own, self._bits)
        return found


def _numbers(which: Any, n_rows: int) -> Int[np.ndarray, " row"]:
    """Row numbers from 0, out of a list of numbers or a mask."""
    asked = np.asarray(which)
    if asked.dtype == bool and asked.shape == (n_rows,):
        return np.flatnonzero(asked)
    if asked.size == 0 and asked.ndim == 1:
        return np.empty(0, np.int64)
    if asked.ndim != 1 or asked.dtype.kind not in "iu":
        raise FeatureError(
            f"rows are asked for by number, slice, list of numbers or mask [{n_rows}]; got "
            f"{asked.dtype} {list(asked.shape)}"
        )
    asked = asked.astype(np.int64)
    wrong = asked[(asked < -n_rows) | (asked >= n_rows)]
    if len(wrong):
        raise IndexError(f"there are rows 0 to {n_rows - 1}; asked for {wrong[0]}")
    return np.where(asked < 0, asked + n_rows, asked)
