"""How a harvest is cut into shards, and what all of its numbers depend on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr.features.batch import Work
from hooked_asr.features.errors import FeatureError
from hooked_asr.features.pools import every_position, pool_name
from hooked_asr.features.sites import width
from hooked_asr.manifests import Clip, clips_hash
from hooked_asr.patching.engine.memory import as_bytes, readable
from hooked_asr.weights.fingerprint import computed_with

_MEMORY = 2**28  # bytes of rows that wait to be written
_BATCHES = 16  # in a shard at most: what a kill can cost


@dataclass(frozen=True)
class Shard:
    """One file to be: a run of clips, in whole batches but for the last."""

    number: int
    clips: Sequence[Clip]
    batch_size: int

    @property
    def file(self) -> str:
        return f"shard-{self.number:05d}.safetensors"

    @property
    def batches(self) -> list[Sequence[Clip]]:
        starts = range(0, len(self.clips), self.batch_size)
        return [self.clips[start : start + self.batch_size] for start in starts]


def shards_of(
    model: Any, clips: Sequence[Clip], work: Work, batch_size: int, memory: int | str | None
) -> list[Shard]:
    """The clips in order, cut so that a shard's rows fit the memory whatever is heard.

    Raises `FeatureError` where those of one batch do not.
    """
    most = clip_bytes(model, work) * batch_size
    limit = _MEMORY if memory is None else as_bytes(memory, torch.device("cpu"))
    fitting = limit // most
    if not fitting and memory is not None:
        raise FeatureError(
            f"the rows of {batch_size} clips may take {readable(most)}, and memory is "
            f"{readable(limit)}: give more, or a smaller batch_size"
        )
    size = batch_size * min(max(1, fitting), _BATCHES)
    starts = range(0, len(clips), size)
    return [Shard(i, clips[start : start + size], batch_size) for i, start in enumerate(starts)]


def clip_bytes(model: Any, work: Work) -> int:
    """The most bytes that are kept of one clip: it fills the window, and the decoder's positions.

    A function's vectors are reckoned as wide as the site.
    """
    config, total = model.config, 0
    for spec in work.sites.specs:
        n_pos = spec.shape(config, 1, config.decoder.n_ctx)[spec.position_axis]
        rows = n_pos if every_position(work.pool) else 1
        size = (work.dtype or torch.promote_types(model.dtype, torch.float32)).itemsize
        total += rows * width(spec, config) * size
    return total


def asked_of(
    model: Any, clips: Sequence[Clip], work: Work, batch_size: int, shards: Sequence[Shard]
) -> dict[str, Any]:
    """All that the numbers depend on, as JSON holds it."""
    asking = work.asking
    decoder: dict[str, Any] = {}
    if work.forces:
        prompt = dict(asking.prompt)
        decoder = {"texts": asking.texts, "language": asking.language, "prompt": prompt}
    said = {
        **computed_with(model),
        "clips (hash)": clips_hash(clips),
        "sites": work.sites.names,
        "pool": pool_name(work.pool),
        "dtype": None if work.dtype is None else str(work.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "clips in a shard": len(shards[0].clips),
        **decoder,
    }
    plain: dict[str, Any] = json.loads(json.dumps(said))
    return plain


def check_labels(clips: Sequence[Clip]) -> None:
    """Raises `FeatureError` for labels that no index can hold."""
    for clip in clips:
        for name, value in clip.labels.items():
            _check_label(clip, name, value)


def _check_label(clip: Clip, name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise FeatureError(
            f"label {name!r} of clip {clip.id!r} is {value!r} ({type(value).__name__}), which JSON "
            "does not hold: give a text, a number, True, False or None"
        ) from error
