"""Which rows a probe is fitted to, and which it is scored on: no group is on both sides."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.question import Question, Rows, listed

Fold = tuple[Rows, Rows]  # to fit to, to score on

_NAMED = 5  # groups that a message names
_INNER = 5  # folds in which the penalty is chosen


def outer_folds(question: Question, folds: int, seed: int) -> list[Fold]:
    """Folds that together score each row once: stratified by class, whole groups on one side.

    As many folds as groups leave out one group each.

    Raises `ProbeError` for fewer groups (rows) than folds, and where a fold would leave nothing of
    a class to fit to.
    """
    n_groups = len(set(question.numbers))
    what = "rows" if question.groups is None else "groups"
    if not 2 <= folds <= n_groups:
        raise ProbeError(
            f"there are {n_groups} {what}, for 2 to {n_groups} folds; got {folds}: give fewer "
            f"folds, or more {what}"
        )
    found = _split(question, folds, seed)
    _check_classes(question, found)
    return found


def inner_folds(question: Question, seed: int) -> list[Fold]:
    """Folds among the rows that a probe is fitted to, of which none is scored on.

    Empty where there are not two groups, or no fold has two classes to fit to.
    """
    folds = min(_INNER, len(set(question.numbers)))
    if folds < 2:
        return []
    found = _split(question, folds, seed)
    if question.classes is None:
        return found
    return [fold for fold in found if len(set(question.targets[fold[0]])) > 1]


def given_fold(question: Question, split: Any) -> list[Fold]:
    """The one fold of a given split: "train" or "test" for each row.

    Raises `ProbeError` for other words, a group on both sides, or a class that is only tested.
    """
    sides = listed(split, "split")
    if len(sides) != len(question):
        raise ProbeError(f"{len(question)} labels have as many sides; got {len(sides)}")
    for row, side in enumerate(sides):
        if side not in ("train", "test"):
            raise ProbeError(f"row {row} is on the side {side!r}: sides are 'train' and 'test'")
    train, test = (np.flatnonzero([one == side for one in sides]) for side in ("train", "test"))
    if not (train.size and test.size):
        raise ProbeError(f"a split has two sides; all {len(sides)} rows are {sides[0]!r}")
    _check_leaks(question, train, test)
    _check_classes(question, [(train, test)])
    return [(train, test)]


def _split(question: Question, folds: int, seed: int) -> list[Fold]:
    numbers: Rows | None = question.numbers
    if len(set(question.numbers)) == len(question):  # each row stands alone
        numbers = None
    splitter = _splitter(question, numbers, folds)(folds, shuffle=True, random_state=seed)
    blank = np.zeros((len(question), 1))
    with warnings.catch_warnings():
        # A class of fewer rows than folds, which is fine: not every fold has to score it.
        warnings.filterwarnings("ignore", "The least populated class")
        found = list(splitter.split(blank, question.targets, numbers))
    return [fold for fold in found if fold[1].size]


def _splitter(question: Question, numbers: Rows | None, folds: int) -> Any:
    one_each = folds == len(set(question.numbers))
    # Stratified splitters refuse to work where no class has a row for each fold.
    stratified = (
        question.classes is not None
        and not one_each
        and np.bincount(question.targets.astype(int)).max() >= folds
    )
    if numbers is None:
        return StratifiedKFold if stratified else KFold
    return StratifiedGroupKFold if stratified else GroupKFold


def _check_classes(question: Question, folds: list[Fold]) -> None:
    """Something of every class is there to fit to."""
    if question.classes is None:
        return
    for train, test in folds:
        missing = set(question.targets[test]) - set(question.targets[train])
        if missing:
            _refuse_class(question, int(min(missing)), test)


def _refuse_class(question: Question, place: int, test: Rows) -> None:
    label = (question.classes or [])[place]
    rows = np.flatnonzero(question.targets == place)
    if question.groups is None:
        where = f"its {len(rows)} rows"
    else:
        where = f"those of {_few(sorted({question.groups[row] for row in rows}))}"
    raise ProbeError(
        f"all rows of class {label!r}, {where}, are held out together, and nothing of it is left "
        "to fit to: give it more groups, leave it out, or take more folds or another seed"
    )


def _check_leaks(question: Question, train: Rows, test: Rows) -> None:
    if question.groups is None:
        return
    both = {question.groups[row] for row in train} & {question.groups[row] for row in test}
    if both:
        raise ProbeError(
            f"the split leaks: {_few(sorted(both))} {'is' if len(both) == 1 else 'are'} on both "
            "sides: put each group on one"
        )


def _few(groups: list[str]) -> str:
    named = ", ".join(map(repr, groups[:_NAMED]))
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return f"group{'s' if len(groups) > 1 else ''} {named}{more}"
