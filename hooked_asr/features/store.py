"""Features on the disk, read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from hooked_asr.features.disk import INDEX, read_json
from hooked_asr.features.errors import FeatureError
from hooked_asr.features.rows import Rows
from hooked_asr.features.shard_file import NUMPY_TYPES, ClipRows, ShardFile
from hooked_asr.features.table import table_of
from hooked_asr.manifests import Clip
from hooked_asr.names import ShortName, resolve

_OPEN = 256  # shards whose headers are kept

Batch = tuple[Int[np.ndarray, " row"], Float[np.ndarray, "row d"]]


class FeatureStore:
    """Rows of activations of many clips, and what is known of each row.

        store = FeatureStore.open("features")
        x = store["encoder.3.hook_resid_post"][:1000]        # [row d]
        y = store.table()["sex"][:1000]

    Made by `harvest`. Rows stand clip after clip in the order of the clips; those of several
    shards, and processes, are one. `len` is the number of rows.

    - `sites`: names of hooks. `clips`: those that rows are kept of, as they were given, but with
      the text and language of the transcript that the decoder was forced with, if it ran.
    - `failed`: why of others there are none, by their ids.
    - `index`: all of this, and what was asked, as it lies on the disk.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.index = folder, index
        self.failed: dict[str, str] = index["failed"]
        self._file = lru_cache(_OPEN)(self._open_shard)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FeatureStore:
        """A store from its folder.

        Raises `FeatureError` where there is none, or one that is damaged or not done yet.
        """
        return cls(Path(path), read_json(Path(path) / INDEX))

    def __len__(self) -> int:
        return int(self.index["rows"])

    def __repr__(self) -> str:
        return (
            f"FeatureStore({len(self)} rows of {len(self.index['clips'])} clips, "
            f"{len(self.sites)} sites, pool {self.pool!r})"
        )

    @property
    def sites(self) -> list[str]:
        return list(self.index["sites"])

    @property
    def pool(self) -> str:
        return str(self.index["asked"]["pool"])

    @property
    def fingerprint(self) -> str:
        """The hash of the weights that the features are of (see `weights.fingerprint`)."""
        return str(self.index["asked"]["weights (hash)"])

    @property
    def clips(self) -> list[Clip]:
        names = ("id", "audio", "text", "language", "group", "labels")
        return [Clip(**{name: one[name] for name in names}) for one in self.index["clips"]]

    def __getitem__(self, site: ShortName) -> Rows:
        """All rows of a site, by its name or a short form such as ("resid_post", 3).

        Raises `UnknownHookError` for a site that was not kept.
        """
        name = resolve(site, self.sites)
        own = self.index["sites"][name]
        counts = [shard["rows"] for shard in self.index["shards"]]
        return Rows(counts, own["width"], NUMPY_TYPES[own["dtype"]], lambda i: self._map(i, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __contains__(self, site: object) -> bool:
        return site in self.index["sites"]

    def features(self) -> dict[str, Rows]:
        """All sites' rows, by site."""
        return {site: self[site] for site in self.sites}

    def table(self) -> pd.DataFrame:
        """What is known of each row: clip, text, language, group, and all labels.

        `start` and `end` (s) are what of the clip it hears; rows of single positions also have
        `position`, and those of tokens, in place of moments, `token` and `token_id`. A label that
        is called like one of these has "(label)" behind its name.
        """
        clock = None
        if self.pool in ("frames", "tokens"):
            clock = next(iter(self.index["sites"].values()))["clock"]
        return table_of(self.index["clips"], clock, self._tokens() if clock == "pos" else ())

    def batches(self, site: ShortName, size: int, shuffle: int | None = None) -> Iterator[Batch]:
        """All rows of a site, so many at a time: their numbers, and the rows `[row d]`.

        `shuffle`: a seed, by which all rows are mixed; the same batches each time.

        Raises `FeatureError` for batches of no rows.
        """
        if size < 1:
            raise FeatureError(f"a batch has at least one row; got size={size}")
        rows = self[site]
        order = np.arange(len(self))
        if shuffle is not None:
            order = np.random.default_rng(shuffle).permutation(order)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            yield numbers, rows[numbers]

    def _map(self, shard: int, site: str) -> Shaped[np.ndarray, "row d"]:
        return self._file(shard).map(site)

    def _open_shard(self, shard: int) -> ShardFile:
        said = self.index["shards"][shard]
        file = ShardFile.open(self.folder / said["file"])
        if file.n_rows != said["rows"]:
            raise FeatureError(f"{file.path} is not the one that the index knows: harvest again")
        return file

    def _tokens(self) -> Iterator[ClipRows]:
        for shard in range(len(self.index["shards"])):
            yield from (one for one in self._file(shard).clips if one.failure is None)
