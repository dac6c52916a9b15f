"""Long work, one key after the other: shared between processes, and resumed where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from hooked_asr.errors import HookedASRError
from hooked_asr.processes import Process, this_process
from hooked_asr.records import Records, open_records

_POLL = 0.5  # seconds between looks at what other processes have done

Skip = tuple[type[Exception], ...]


class WorkError(HookedASRError):
    """Work that cannot be shared as asked."""


@dataclass(frozen=True)
class Done:
    """What came of each key, in the keys' order: a result, or why there is none."""

    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def work_through(
    keys: Sequence[str],
    work: Callable[[str], Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    asked: Mapping[str, Any] | None = None,
    skip: Skip = (),
    process: Process | None = None,
    progress: bool = True,
    name: str = "work",
    unit: str = "it",
) -> Done:
    """Do the work of every key, and give what came of all of them.

    >>> work_through(["a", "bb"], len, progress=False).results
    {'a': 1, 'bb': 2}

    - `work`: makes a key's result, whatever JSON holds. For the same numbers at any number of
      processes, and after any interruption, it depends on the key alone.
    - `folder`, `asked`: where results are kept as they come, and what they depend on (see
      `records`); a run that finds results there goes on behind them. None keeps nothing.
    - `skip`: the errors that are a key's failure, and no end of the work. A failure kept in the
      folder stands while its kind may be skipped; otherwise the key is tried again.
    - `process`: which process this is, by default as the environment says it. Each does every
      `world_size`-th key, then waits for the others. One that ends early would be waited for
      without end: torchrun ends all of them, and other launchers can be told to.
    - `name`, `unit`: what the progress bar calls the work and a key.

    Raises `WorkError` for a key that is there twice, or several processes without a folder;
    `RecordsError` as `open_records`; and what `work` raises.
    """
    process = process or this_process()
    _check(keys, folder, process)
    mine = process.share(keys)
    shown = progress and process.rank == 0
    if folder is None:
        return _in_order(keys, *_in_memory(mine, work, skip, _bar(mine, name, unit, shown)))
    with open_records(folder, asked or {}, process.rank) as records:
        results, failures = records.read()
        done = results.keys() | (failures.keys() if skip else set())
        with _bar(mine, name, unit, shown) as bar:
            bar.update(sum(key in done for key in mine))
            bar.unpause()  # the time left is that of what is left
            for key in mine:
                if key not in done:
                    _do(key, work, skip, records)
                    bar.update()
        return _in_order(keys, *_all(keys, records, bool(skip), shown))


def _check(keys: Sequence[str], folder: object, process: Process) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise WorkError(f"{twice!r} is there twice: name all work apart")
    if folder is None and process.world_size > 1:
        raise WorkError(
            f"{process.world_size} processes share their results in a folder: give one that all "
            "of them see, or unset RANK and WORLD_SIZE"
        )


def _in_memory(
    keys: Sequence[str], work: Callable[[str], Any], skip: Skip, bar: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    results, failures = {}, {}
    with bar:
        for key in keys:
            try:
                results[key] = work(key)
            except skip as error:
                failures[key] = str(error)
            bar.update()
    return results, failures


def _do(key: str, work: Callable[[str], Any], skip: Skip, records: Records) -> None:
    try:
        result = work(key)
    except skip as error:
        records.append_failure(key, str(error))
    else:
        records.append(key, result)


def _all(
    keys: Sequence[str], records: Records, skips: bool, progress: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """What all processes have done, once they have."""
    bar = tqdm(desc="all processes", total=len(keys), disable=not progress, leave=False, delay=1)
    with bar:
        while True:
            size = records.size()  # before what is read, so that nothing new is missed
            results, failures = records.read()
            missing = _missing(keys, results, failures if skips else {})
            bar.update(len(keys) - missing - bar.n)
            if not missing:
                return results, failures
            while records.size() == size:
                time.sleep(_POLL)


def _missing(keys: Sequence[str], *done: Mapping[str, Any]) -> int:
    return sum(not any(key in one for one in done) for key in keys)


def _in_order(keys: Sequence[str], results: Mapping[str, Any], failures: Mapping[str, str]) -> Done:
    return Done(
        {key: results[key] for key in keys if key in results},
        {key: failures[key] for key in keys if key in failures},
    )


def _bar(keys: Sequence[str], name: str, unit: str, shown: bool) -> Any:
    return tqdm(total=len(keys), desc=name, unit=unit, disable=not shown)
