"""Batches of activations for a training, drawn from blocks of rows that lie on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_asr.features.loading import made_ahead
from hooked_asr.features.rows import Rows
from hooked_asr.patching.engine.memory import readable
from hooked_asr.sae.errors import SAEError

# Copies of a chunk that live at the same time: two read ahead, the one in use, and what the one
# that is being read is put together from.
_CHUNKS = 4


@dataclass(frozen=True)
class Place:
    """Where in the stream a training is: how many blocks it has been through, and batches of this
    one.
    """

    turn: int = 0
    batch: int = 0


@runtime_checkable
class Blocks(Protocol):
    """What a stream draws from: blocks of rows without end, the same whenever it is begun."""

    def turns(self, start: int, n_rows: int) -> Generator[Rows, None, None]:
        """The blocks from that turn on, for about so many rows."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A batch, the block that it is of, and the place behind it."""

    rows: Rows
    batch: Float[Tensor, "row d"]
    then: Place


class Stream:
    """Batches `[row d]` in float32, which depend on the blocks, the seed and the place alone.

    A block's rows are gone through in an order of their own for each turn, without what is left at
    the end of a whole batch; a block smaller than a batch is one.

    - `memory`: bytes that rows on their way may take.

    Raises `SAEError` where not even a batch fits in there.
    """

    def __init__(self, blocks: Blocks, *, batch_size: int, memory: int, seed: int) -> None:
        self.blocks, self.batch_size, self.memory, self.seed = blocks, batch_size, memory, seed

    def batches(self, place: Place, n_batches: int) -> Generator[Drawn, None, None]:
        """So many batches, from a place on."""
        left, first = n_batches, place.batch
        with closing(self.blocks.turns(place.turn, n_batches * self.batch_size)) as turns:
            for turn, rows in enumerate(turns, start=place.turn):
                size = min(self.batch_size, len(rows))
                own = range(first, min(len(rows) // size, first + left))
                for number, batch in zip(own, self._of_block(rows, turn, own, size), strict=True):
                    at_end = number + 1 == len(rows) // size
                    yield Drawn(rows, batch, Place(turn + 1) if at_end else Place(turn, number + 1))
                left, first = left - len(own), 0
                if not left:
                    return

    def _of_block(self, rows: Rows, turn: int, own: range, size: int) -> Iterator[Tensor]:
        """The batches of one turn: several are read at once, in the order of the disk."""
        order = shuffled(len(rows), self.seed, "turn", turn)
        n = self._batches_in_memory(rows, size)
        chunks = (
            order[start * size : min(start + n, own.stop) * size]
            for start in range(own.start, own.stop, n)
        )
        for chunk in made_ahead(lambda numbers: rows[numbers], chunks):
            for start in range(0, len(chunk), size):
                yield torch.from_numpy(chunk[start : start + size].astype(np.float32))

    def _batches_in_memory(self, rows: Rows, size: int) -> int:
        batch = size * rows.shape[1] * max(rows.dtype.itemsize, 4)
        if self.memory < _CHUNKS * batch:
            raise SAEError(
                f"memory is {readable(self.memory)}, and {_CHUNKS} batches of {size} rows take "
                f"{readable(_CHUNKS * batch)}: give more, or a smaller batch_size"
            )
        return self.memory // (_CHUNKS * batch)


def shuffled(n: int, seed: int, *of: object) -> Int[np.ndarray, " n"]:
    """An order that hangs on what it is of, and on nothing that was drawn before.

    >>> sorted(shuffled(4, 0, "turn", 1).tolist())
    [0, 1, 2, 3]
    """
    digest = hashlib.sha256(repr((seed, *of)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(n)
