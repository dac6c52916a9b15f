"""How items are said: by espeak-ng in this process, or by any text-to-speech program."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

from hooked_asr.datasets.command import Command
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Item, Made, Say
from hooked_asr.nano.clips import Clip, Plan, speak, spoken
from hooked_asr.nano.espeak import Espeak

_SEEDS = 10_000  # of one set's parts


@runtime_checkable
class Synthesis(Protocol):
    """Makes the items of one part of a set, which are made together or not at all."""

    def make(self, items: Sequence[Item], part: int) -> list[Made]: ...


@dataclass(frozen=True)
class EspeakSynthesis:
    """espeak-ng: a part is said as in a fresh process, one item after the other.

    So its samples depend on nothing but the part and the seed.
    """

    seed: int

    def make(self, items: Sequence[Item], part: int) -> list[Made]:
        @cache  # only where anything is said: noises need no espeak-ng
        def espeak() -> Espeak:
            return Espeak(self.seed * _SEEDS + part, fresh=True)

        def say(plan: Plan) -> Clip:
            return speak(espeak(), plan)

        return _all_made(items, say)


@dataclass(frozen=True)
class CommandSynthesis:
    """A program that is run for every text, `jobs` at a time."""

    command: Command
    jobs: int = 1

    def make(self, items: Sequence[Item], part: int) -> list[Made]:
        def say(plan: Plan) -> Clip:
            return spoken(plan, self.command.say)

        with ThreadPoolExecutor(self.jobs) as pool:
            found = pool.map(lambda item: _all_made([item], say), items)
            return [made for own in found for made in own]


def synthesis(tts: str | None, voices: Sequence[str] | None, jobs: int, seed: int) -> Synthesis:
    """The way to speak that was asked for.

    Raises `DatasetError` for voices without a command or the other way round, and a command that
    does not say where its sound goes.
    """
    if jobs < 1:
        raise DatasetError(f"jobs is a number of processes, 1 at least; got {jobs}")
    if tts is None:
        if voices:
            raise DatasetError(
                "voices= are those of a program, tts=; espeak-ng's own are narrowed by sex= and "
                "accents="
            )
        return EspeakSynthesis(seed)
    if not voices:
        raise DatasetError(f"voices= names the voices, {{voice}}, of {tts!r}: give at least one")
    return CommandSynthesis(Command.parsed(tts), jobs)


def _all_made(items: Sequence[Item], say: Say) -> list[Made]:
    return [made for item in items for made in item.make(say)]
