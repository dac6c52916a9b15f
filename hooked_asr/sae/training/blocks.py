"""Blocks of rows: a feature store, or clips whose activations are harvested as they are needed."""

from __future__ import annotations

import math
import shutil
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import soundfile
import torch

from hooked_asr.features import FeatureStore, harvest
from hooked_asr.features.rows import Rows
from hooked_asr.features.sites import width
from hooked_asr.manifests import Clip
from hooked_asr.names import HookSpec
from hooked_asr.patching.engine.memory import readable
from hooked_asr.processes import Process
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.training.stream import shuffled
from hooked_asr.timing import FRAMES, FRAMES_PER_SECOND

ALL = "all"  # the block that holds the whole corpus


@dataclass(frozen=True)
class StoreBlocks:
    """A store is one block, which is gone through again and again."""

    store: FeatureStore
    site: str

    def turns(self, start: int, n_rows: int) -> Generator[Rows, None, None]:
        yield from repeat(self.store[self.site])


@dataclass(frozen=True)
class Harvesting:
    """What is harvested of a block's clips, and how."""

    model: Any
    spec: HookSpec
    dtype: torch.dtype | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        return "tokens" if self.spec.clock == "pos" else "frames"

    def run(self, clips: Sequence[Clip], folder: Path, progress: bool) -> FeatureStore:
        # Each process trains an autoencoder of its own: a block is shared with none.
        return harvest(
            self.model,
            clips,
            [self.spec.name],
            pool=self.pool,
            dtype=self.dtype,
            out=folder,
            process=Process(),
            progress=progress,
            **self.options,
        )

    def most_bytes(self, clip: Clip) -> int:
        """What a clip's rows take at most; the file's header says how long it is."""
        model, spec = self.model, self.spec
        shape = spec.shape(model.config, 1, model.config.decoder.n_ctx)
        n_rows = shape[spec.position_axis]
        if spec.clock in FRAMES:
            n_frames = _seconds(clip) * FRAMES_PER_SECOND
            n_rows = min(n_rows, math.ceil(min(n_frames, 1e9) / FRAMES[spec.clock]) + 1)
        return n_rows * width(spec, model.config) * (self.dtype or model.dtype).itemsize


@dataclass(frozen=True)
class LiveBlocks:
    """Clips, cut into blocks of which two fit into `buffer` bytes on the disk.

    While one is trained on, the next is harvested in a thread, and the one before it is gone. Each
    epoch mixes the clips anew, and cuts them anew. Where all rows fit into the buffer, they are one
    block, harvested once, and kept.

    `passes`: how often a block's rows are gone through before the next has its turn.
    """

    harvesting: Harvesting
    clips: Sequence[Clip]
    folder: Path
    buffer: int
    passes: int
    seed: int
    progress: bool = False

    @property
    def fits(self) -> bool:
        return sum(self._sizes) <= self.buffer

    def turns(self, start: int, n_rows: int) -> Generator[Rows, None, None]:
        if self.fits:
            store = self.harvesting.run(self.clips, self.folder / ALL, self.progress)
            yield from repeat(store[self.harvesting.spec.name])
        else:
            yield from self._in_blocks(start, n_rows)

    def _in_blocks(self, start: int, n_rows: int) -> Iterator[Rows]:
        with _quick_turns():
            yield from self._one_ahead(start, n_rows)

    def _one_ahead(self, start: int, n_rows: int) -> Iterator[Rows]:
        done, past = divmod(start, self.passes)
        plan = islice(self._plan(), done, None)
        coming = _Coming(self, *next(plan))
        self._remove_but(coming.folder)
        try:
            while True:
                rows, own = coming.rows(), coming.folder
                # Nothing reads a block that has had its turns.
                self._remove_but(own)
                n_turns, past = self.passes - past, 0
                n_rows -= n_turns * len(rows)
                if n_rows > 0:
                    coming = _Coming(self, *next(plan))
                yield from repeat(rows, n_turns)
                if coming.folder == own:  # a few rows were left at the ends of turns
                    coming = _Coming(self, *next(plan))
        finally:
            coming.stop()

    def _plan(self) -> Iterator[tuple[str, list[Clip]]]:
        """Names and clips of all blocks to come."""
        for epoch in count():
            order = shuffled(len(self.clips), self.seed, "clips", epoch).tolist()
            for number, block in enumerate(cut(order, self._sizes, self.buffer // 2)):
                yield f"{epoch}-{number}", [self.clips[i] for i in block]

    @cached_property
    def _sizes(self) -> list[int]:
        sizes = [self.harvesting.most_bytes(clip) for clip in self.clips]
        if max(sizes) > self.buffer // 2 and sum(sizes) > self.buffer:
            raise SAEError(
                f"buffer is {readable(self.buffer)}, of which half is for one block, and one clip "
                f"alone may take {readable(max(sizes))}: give more"
            )
        return sizes

    def _remove_but(self, kept: Path) -> None:
        for folder in self.folder.glob("*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)


def cut(order: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Runs of an order, each as long as what it takes is not above `most`.

    >>> list(cut([2, 0, 1, 3], [5, 5, 4, 9], 10))
    [[2, 0], [1], [3]]
    """
    block: list[int] = []
    for one in order:
        if block and sum(sizes[i] for i in block) + sizes[one] > most:
            yield block
            block = []
        block.append(one)
    yield block


class _Coming:
    """A block that is being harvested in a thread."""

    def __init__(self, blocks: LiveBlocks, name: str, clips: Sequence[Clip]) -> None:
        self.folder = blocks.folder / name
        self._blocks, self._clips = blocks, clips
        self._store: FeatureStore | None = None
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"hooked_asr block {name}")
        self._thread.start()

    def rows(self) -> Rows:
        """Its rows, once they are all there; and what went wrong with them is raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._store is not None
        return self._store[self._blocks.harvesting.spec.name]

    def stop(self) -> None:
        """End it with the batch of clips that it is at; it can be gone on with."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        own = self._blocks.harvesting
        try:
            with _stopped_by(self._stopping, own.model, own.spec.name):
                self._store = own.run(self._clips, self.folder, progress=False)
        except _StoppedError:
            pass
        except BaseException as error:  # raised where the block is asked for
            self._error = error


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let threads take turns more often than every 5 ms, which a step's many operations wait for.

    Each comes back from PyTorch after much less, and would wait that long for the other.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _StoppedError(Exception):
    """A harvest that nobody waits for any more."""


@contextmanager
def _stopped_by(stopping: threading.Event, model: Any, site: str) -> Iterator[None]:
    def look(x: torch.Tensor, hook: Any) -> None:
        if stopping.is_set():
            raise _StoppedError

    with model.hooks([(site, look)]):
        yield


def _seconds(clip: Clip) -> float:
    """How long a clip is; without end, where its header does not say."""
    try:
        return float(soundfile.info(clip.audio_path).duration)
    except (soundfile.SoundFileError, OSError, TypeError):
        return math.inf
