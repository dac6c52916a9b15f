"""What is to be told of each row: labels and groups, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Num
from torch import Tensor

from hooked_asr.probes.errors import ProbeError

TASKS = ("classification", "regression")

Label = str | bool | int | float
Rows = Int[np.ndarray, "_"]  # places of some rows, or a number for each


@dataclass(frozen=True, eq=False)
class Question:
    """Labels and groups of the rows of a feature matrix.

    - `labels`: as they were given; `classes`: those there are, sorted; None for numbers.
    - `targets`: of each row the place of its label among the classes, or its number.
    - `groups`: rows of one group are never on both sides of a split; None where each stands alone.
    """

    labels: list[Label]
    classes: list[Label] | None
    targets: Num[np.ndarray, " row"]
    groups: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def task(self) -> str:
        return "regression" if self.classes is None else "classification"

    @property
    def numbers(self) -> Rows:
        """The number of each row's group; without groups, each row's own."""
        if self.groups is None:
            return np.arange(len(self))
        return np.unique(self.groups, return_inverse=True)[1]

    def of(self, rows: Rows) -> Question:
        """The same question of some of the rows; the classes stay."""
        return Question(
            [self.labels[row] for row in rows],
            self.classes,
            self.targets[rows],
            None if self.groups is None else [self.groups[row] for row in rows],
        )


def as_question(labels: Any, groups: Any, task: str) -> Question:
    """Labels and groups, checked.

    >>> as_question(["b", "a", "b", "a"], None, "classification").targets
    array([1, 0, 1, 0])

    Raises `ProbeError` for labels that are missing or mixed, a class that is alone or has a single
    row, constant numbers, and groups that do not fit.
    """
    if task not in TASKS:
        raise ProbeError(f"tasks are {' and '.join(map(repr, TASKS))}; got {task!r}")
    found = listed(labels, "labels")
    if len(found) < 2:
        raise ProbeError(f"a probe takes several rows; got {len(found)}")
    grouped = None if groups is None else _groups(groups, len(found))
    if task == "regression":
        return Question(found, None, _numbers(found), grouped)
    classes = _classes(found)
    place = {one: i for i, one in enumerate(classes)}
    return Question(found, classes, np.array([place[one] for one in found]), grouped)


def listed(values: Any, name: str) -> list[Any]:
    """A column of anything (a list, an array, a tensor, a series) as Python's own values."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ProbeError(f"{name} are one for each row; got {values!r}")
    found = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
    return [one.item() if isinstance(one, np.generic) else one for one in found]


def _groups(groups: Any, n_rows: int) -> list[str]:
    found = listed(groups, "groups")
    if len(found) != n_rows:
        raise ProbeError(f"{n_rows} labels have as many groups; got {len(found)}")
    for row, one in enumerate(found):
        if one is None or one != one:
            raise ProbeError(f"row {row} has no group: give each row one, or none at all")
    return [str(one) for one in found]


def _numbers(labels: Sequence[Any]) -> Float64[np.ndarray, " row"]:
    for row, one in enumerate(labels):
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise ProbeError(
                f"the label of row {row} is {one!r}: a regression takes finite numbers; for "
                "classes ask for task='classification'"
            )
    numbers = np.array(labels, dtype=np.float64)
    if np.ptp(numbers) == 0:
        raise ProbeError(f"all {len(labels)} labels are {labels[0]!r}: there is nothing to tell")
    return numbers


def _classes(labels: Sequence[Any]) -> list[Label]:
    """The classes, sorted; where there are two, the second is the positive one."""
    for row, one in enumerate(labels):
        if not isinstance(one, str | bool | int | float) or one != one:
            raise ProbeError(
                f"the label of row {row} is {one!r}: classes are texts, bools or numbers; leave "
                "out rows without one"
            )
    kinds = {_kind(one): one for one in labels}
    if len(kinds) > 1:
        mixed = ", ".join(f"{kind} ({one!r})" for kind, one in kinds.items())
        raise ProbeError(f"labels are of one kind; got {mixed}")
    classes = sorted(set(labels))
    if len(classes) == 1:
        raise ProbeError(
            f"all {len(labels)} labels are {classes[0]!r}: give rows of at least two classes"
        )
    for one in classes:
        if labels.count(one) == 1:
            raise ProbeError(
                f"class {one!r} has a single member, row {labels.index(one)}: give more of it, or "
                "leave it out"
            )
    return classes


def _kind(label: Label) -> str:
    return "text" if isinstance(label, str) else "bool" if isinstance(label, bool) else "number"
