"""One shard: the rows of a run of clips by site, and what is known of each clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hooked_asr.features.batch import Kept
from hooked_asr.features.disk import kept
from hooked_asr.features.errors import FeatureError
from hooked_asr.features.loading import Unusable

_KEY = "hooked_asr.features"  # of all that is known: the order of several keys is left to chance
_LENGTH = 8  # bytes that hold the header's length
_KINDS = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
NUMPY_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class ClipRows:
    """What a shard knows of a clip.

    - `rows`: how many there are of it. `seconds`: how long its sound is.
    - `text`, `language`: of the transcript that the decoder was forced with, where it ran.
    - `positions`, `tokens`, `words`: where each row's token is, its id and its text, where there is
      a row for each.
    - `failure`: why there are no rows.
    """

    id: str
    rows: int = 0
    seconds: float | None = None
    text: str | None = None
    language: str | None = None
    positions: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    failure: str | None = None


def clip_rows(model: Any, one: Kept | Unusable, every_token: bool) -> ClipRows:
    """What to know of a clip, from what came of it."""
    if isinstance(one, Unusable):
        return ClipRows(one.clip.id, failure=one.reason)
    known = ClipRows(one.heard.clip.id, one.n_rows, one.seconds)
    if one.forced is None:
        return known
    said = {"text": one.forced.text, "language": one.forced.language}
    if not every_token:
        return ClipRows(**asdict(known) | said)
    tokens = one.forced.said
    words = model.to_str_tokens(tokens) if model.tokenizer is not None else []
    each = {"positions": one.forced.places, "tokens": tokens, "words": words}
    return ClipRows(**asdict(known) | said | each)


def write_shard(
    path: Path, sites: Sequence[str], clips: Sequence[ClipRows], rows: Sequence[dict[str, Tensor]]
) -> None:
    """Write a shard as safetensors; `rows` are those of the clips that have any, by site.

    By hand: safetensors' own writer makes a file of a random name first, which a kill leaves
    behind, and takes all rows of a site in one piece.

    Raises `FeatureError` where vectors are of several widths.
    """
    known = json.dumps([asdict(clip) for clip in clips], ensure_ascii=False)
    header: dict[str, Any] = {"__metadata__": {_KEY: known}}
    end = 0
    for name in sites:
        start, width = end, _width(name, rows)
        end = start + sum(own[name].nbytes for own in rows)
        shape = [sum(len(own[name]) for own in rows), width]
        kind = _KINDS[rows[0][name].dtype] if rows else "F32"
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)  # so that rows begin at a whole word
    with kept(path) as aside, open(aside, "wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for name in sites:
            for own in rows:
                file.write(own[name].contiguous().view(torch.uint8).numpy().data)


def _width(name: str, rows: Sequence[dict[str, Tensor]]) -> int:
    widths = sorted({own[name].shape[1] for own in rows})
    if len(widths) > 1:
        raise FeatureError(f"pool gives vectors of several widths for {name!r}: {widths}")
    return widths[0] if widths else 0


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardFile:
    """A shard's file, of which only the header is read; rows stay on the disk until asked for."""

    path: Path
    sites: dict[str, tuple[str, tuple[int, int], int]]  # type, shape, first byte
    clips: list[ClipRows]

    @classmethod
    def open(cls, path: Path) -> ShardFile:
        """Raises `FeatureError` for a file that is missing or damaged."""
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(_LENGTH), "little")
                size = path.stat().st_size
                if length > size:
                    raise ValueError("it ends before its header does")
                header = json.loads(file.read(length))
            known = json.loads(header.pop("__metadata__")[_KEY])
            sites, start = {}, _LENGTH + length
            for name, one in header.items():
                first, end = one["data_offsets"]
                if start + end > size:
                    raise ValueError("it is cut short")
                sites[name] = one["dtype"], tuple(one["shape"]), start + first
            return cls(path, sites, [ClipRows(**one) for one in known])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(
                f"{path} is missing or damaged ({error}): remove it, and the index beside it, and "
                "run the same harvest again"
            ) from error

    @property
    def n_rows(self) -> int:
        return sum(clip.rows for clip in self.clips)

    def map(self, site: str) -> Shaped[np.ndarray, "row d"]:
        """A site's rows as they lie on the disk; those of bfloat16 as their bits (see `plain`)."""
        kind, shape, start = self.sites[site]
        if 0 in shape:
            return np.empty(shape, NUMPY_TYPES[kind])
        return np.memmap(self.path, NUMPY_TYPES[kind], "r", start, shape)


def plain(rows: Shaped[np.ndarray, "..."], bits: bool) -> Float[np.ndarray, "..."]:
    """Rows as numpy's own floats: bfloat16, which it lacks, as float32.

    >>> plain(np.array([0x3FC0], np.uint16), bits=True)
    array([1.5], dtype=float32)
    """
    if not bits:
        return rows
    return (rows.astype(np.uint32) << 16).view(np.float32)
