"""Which of several processes this one is, as `torchrun` and other launchers say it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hooked_asr.errors import HookedASRError

One = TypeVar("One")


class ProcessError(HookedASRError):
    """An environment that does not say which process this is."""


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes, on one machine or many; `local_rank` counts on its own."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def share(self, work: Sequence[One]) -> list[One]:
        """What falls to this process: every `world_size`-th, whatever is done of it already.

        So processes agree on their shares without a word to each other.

        >>> Process(rank=1, world_size=3).share("abcdefgh")
        ['b', 'e', 'h']
        """
        return list(work[self.rank :: self.world_size])

    def device(self, asked: str) -> str:
        """The device for a process: of several GPUs its own, where only "cuda" was asked for.

        >>> Process(rank=9, world_size=16, local_rank=1).device("cuda"), Process().device("cuda")
        ('cuda:1', 'cuda')
        """
        return f"cuda:{self.local_rank}" if asked == "cuda" and self.world_size > 1 else asked


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """The process that `RANK`, `WORLD_SIZE` and `LOCAL_RANK` make this one; without, the only one.

    >>> this_process({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    Process(rank=3, world_size=4, local_rank=1)

    Raises `ProcessError` for a rank without a world size, or the other way round, and for what are
    no such numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environment[name] for name in names if environment.get(name)}
    if not {"RANK", "WORLD_SIZE"} & given.keys():
        return Process()
    try:
        rank, world_size = int(given["RANK"]), int(given["WORLD_SIZE"])
        local_rank = int(given.get("LOCAL_RANK", 0))
    except (KeyError, ValueError):
        rank, world_size, local_rank = -1, 0, 0
    if not (0 <= rank < world_size and local_rank >= 0):
        raise ProcessError(
            f"RANK counts from 0 to WORLD_SIZE less one; got {given}: start with torchrun, or "
            "unset them"
        )
    return Process(rank, world_size, local_rank)
