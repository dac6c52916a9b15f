"""Which features are active in which rows: sparse, and on the disk where memory is short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_ENTRY = np.dtype([("row", "<i8"), ("feature", "<i4"), ("value", "<f4")])
_BUCKETS = 64  # of features side by side; one of them is sorted at a time

Active = tuple[int, Int[np.ndarray, " active"], Float[np.ndarray, " active"]]


class Activity:
    """The active features of rows that come one batch after the other, by feature once all are in.

        with Activity(sae.n_features, memory=2**28) as activity:
            activity.add(0, features)
            for feature, rows, values in activity.by_feature():
                ...

    - `memory`: bytes that may wait; what is more lies in a temporary folder, 16 bytes for each
      activation above 0, until the block ends.
    - `only`: features to keep; all, if not given.
    """

    def __init__(self, n_features: int, memory: int, only: Sequence[int] | None = None) -> None:
        self._n_features = n_features
        self._only = None if only is None else torch.tensor(sorted(set(only)), dtype=torch.long)
        self._per_bucket = -(-n_features // _BUCKETS)
        self._limit, self._waiting = memory, 0
        self._buckets: list[list[np.ndarray]] = [[] for _ in range(_BUCKETS)]
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Activity:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def numbers(self) -> list[int]:
        """The features that are kept."""
        return list(range(self._n_features)) if self._only is None else self._only.tolist()

    def add(self, first: int, features: Float[Tensor, "row feature"]) -> None:
        """Keep what is active in the rows from number `first` on."""
        columns = features if self._only is None else features[:, self._only.to(features.device)]
        rows, places = (columns > 0).nonzero(as_tuple=True)
        values = columns[rows, places].float().cpu().numpy()
        numbers = places.cpu() if self._only is None else self._only[places.cpu()]
        entries = np.empty(len(values), _ENTRY)
        entries["row"], entries["feature"] = rows.cpu().numpy() + first, numbers.numpy()
        entries["value"] = values
        self._sort_in(entries)
        if self._waiting > self._limit:
            self._spill()

    def by_feature(self) -> Iterator[Active]:
        """For each feature that is kept, in order: its number, its active rows in order, and how
        active it is there.
        """
        numbers = np.array(self.numbers, np.int32)
        for bucket in range(_BUCKETS):
            low, high = (self._per_bucket * one for one in (bucket, bucket + 1))
            own = numbers[(numbers >= low) & (numbers < high)]
            if not len(own):
                continue
            entries = self._read(bucket)
            entries = entries[np.argsort(entries["feature"], kind="stable")]
            starts = np.searchsorted(entries["feature"], own, side="left")
            stops = np.searchsorted(entries["feature"], own, side="right")
            for number, start, stop in zip(own, starts, stops, strict=True):
                of_it = entries[start:stop]
                yield int(number), of_it["row"].copy(), of_it["value"].copy()

    # --- Parts ------------------------------------------------------------------------------------

    def _sort_in(self, entries: np.ndarray) -> None:
        bucket = entries["feature"] // self._per_bucket
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(1, _BUCKETS))
        for own, part in zip(self._buckets, np.split(entries[order], cuts), strict=True):
            if len(part):
                own.append(part)
        self._waiting += entries.nbytes

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="hooked_asr-activity-")
        for bucket, parts in enumerate(self._buckets):
            with self._file(bucket).open("ab") as file:
                for part in parts:
                    part.tofile(file)
            parts.clear()
        self._waiting = 0

    def _read(self, bucket: int) -> np.ndarray:
        parts = list(self._buckets[bucket])
        if self._folder is not None:
            parts.insert(0, np.fromfile(self._file(bucket), _ENTRY))
        return np.concatenate(parts) if parts else np.empty(0, _ENTRY)

    def _file(self, bucket: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{bucket:03d}"
