"""A training's state on the disk: there whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.training.stream import Place

_NAME, _PLACE = "checkpoint-", "place.json"


def save_checkpoint(folder: Path, trainer: Any, place: Place) -> None:
    """Keep all that the next steps depend on; the checkpoint before it goes."""
    name = f"{_NAME}{trainer.n_training_steps:09d}"
    aside = folder / f".{name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    trainer.sae.save_model(aside)
    trainer.save_trainer_state(aside)
    (aside / _PLACE).write_text(json.dumps([place.turn, place.batch]), encoding="utf-8")
    if not (folder / name).exists():  # it is the same one, saved before an interrupt
        os.replace(aside, folder / name)
    _remove_but(folder, name)


def load_checkpoint(folder: Path, trainer: Any) -> Place:
    """Bring a trainer to where the newest checkpoint is; nothing is done where there is none.

    Raises `SAEError` for one that is damaged.
    """
    newest = max(folder.glob(f"{_NAME}*"), default=None)
    if newest is None:
        return Place()
    try:
        trainer.sae.load_weights_from_checkpoint(newest)
        trainer.load_trainer_state(newest)
        return Place(*json.loads((newest / _PLACE).read_text(encoding="utf-8")))
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise SAEError(
            f"{newest} is damaged ({error!r}): remove it, and the training begins anew"
        ) from error


def remove_checkpoints(folder: Path) -> None:
    _remove_but(folder, "")


def _remove_but(folder: Path, name: str) -> None:
    for path in (*folder.glob(f"{_NAME}*"), *folder.glob(f".{_NAME}*")):
        if path.name != name:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """An interrupt (Ctrl-C) that comes in the block is raised behind it, so that none is half done.

    Raises `KeyboardInterrupt`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be told
        return
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt
