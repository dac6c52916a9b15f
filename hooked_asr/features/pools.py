"""From the activations of a clip's real positions to the rows that are kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.features.errors import FeatureError
from hooked_asr.features.sites import Sites
from hooked_asr.names import HookSpec

Vectors = Float[Tensor, "pos d"]
Pool = str | Callable[[Vectors, HookSpec], Float[Tensor, " d"]]
# The positions that count, for each kind that a hook may have: a slice, or their numbers.
Places = Mapping[str, slice | list[int]]

_EVERY = {"frames": ("frame", "audio", "pooled"), "tokens": ("pos",)}
_ONE_ROW = ("mean", "max", "last")


def every_position(pool: Pool) -> bool:
    """Whether a pool keeps a row for each position."""
    return pool in _EVERY


def check_pool(pool: Pool, sites: Sites) -> None:
    """Raises `FeatureError` for a pool that there is not, or that these sites do not have."""
    if callable(pool) or pool in _ONE_ROW:
        return
    if pool not in _EVERY:
        known = ", ".join((*_ONE_ROW, *_EVERY))
        raise FeatureError(f"pool is {known}, or a function; got {pool!r}")
    for spec in sites.specs:
        if spec.clock not in _EVERY[pool]:
            raise FeatureError(
                f"{spec.name!r} counts {_counted(spec)}: pool={pool!r} is not for it. Harvest it "
                "by itself"
            )
    if len(sites.clocks) > 1:
        raise FeatureError(
            f"pool={pool!r} keeps a row for each position, and these sites do not have the same "
            f"ones ({', '.join(sites.clocks)}): harvest each kind by itself"
        )


def pool_name(pool: Pool) -> str:
    """A pool as text; a function by its name."""
    if isinstance(pool, str):
        return pool
    name = getattr(pool, "__qualname__", type(pool).__qualname__)
    return f"{getattr(pool, '__module__', '')}.{name}"


def pooled(own: Vectors, pool: Pool, spec: HookSpec) -> Float[Tensor, "row _"]:
    """What is kept of a clip; `own` are the activations at its real positions, in order.

    Means are taken in float32 at least.

    Raises `FeatureError` for a function that does not give one vector.
    """
    if pool == "mean":
        return own.mean(0, True, dtype=torch.promote_types(own.dtype, torch.float32))
    if pool == "max":
        return own.amax(0, keepdim=True)
    if pool == "last":
        return own[-1:]
    if isinstance(pool, str):
        return own
    made: Any = pool(own, spec)
    if not isinstance(made, Tensor) or made.ndim != 1:
        got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise FeatureError(
            f"pool {pool_name(pool)!r} gives one vector [d] for {spec.name!r} {list(own.shape)}; "
            f"got {got}"
        )
    return made[None]


class PoolingHook:
    """A hook function that keeps the rows of every clip that passes, and nothing else.

    `places`: of each row of the batch.
    """

    def __init__(self, places: Sequence[Places], pool: Pool) -> None:
        self._kept: dict[str, tuple[Float[Tensor, "row d"], list[int]]] = {}
        self._places, self._pool = places, pool

    def __call__(self, x: Tensor, hook: Any) -> None:
        clock = hook.spec.clock
        rows = [
            pooled(own[where[clock]].flatten(1), self._pool, hook.spec)
            for own, where in zip(x.detach(), self._places, strict=True)
        ]
        # Always new memory: a slice would keep the whole activation alive.
        self._kept[hook.name] = torch.cat(rows), [len(row) for row in rows]

    def by_clip(self) -> list[dict[str, Float[Tensor, "row d"]]]:
        """Each clip's rows by site, on the CPU."""
        clips: list[dict[str, Tensor]] = [{} for _ in self._places]
        for name, (rows, counts) in self._kept.items():
            for clip, own in zip(clips, rows.cpu().split(counts), strict=True):
                clip[name] = own
        return clips


def _counted(spec: HookSpec) -> str:
    return "tokens" if spec.clock == "pos" else "frames of sound"
