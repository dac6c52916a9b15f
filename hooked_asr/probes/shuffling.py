"""Labels that have nothing to do with their rows: what a probe scores on these is chance."""

from __future__ import annotations

import numpy as np

from hooked_asr.probes.estimators import Targets
from hooked_asr.probes.question import Question


def shuffled(question: Question, rng: np.random.Generator) -> Targets:
    """The targets in another order.

    Where all rows of each group have one label, groups exchange labels, so that what is told of
    one row of a group still holds for the others. Otherwise any rows do: to shuffle within groups
    would leave what a group tells of its labels, which is not chance.
    """
    numbers = np.unique(question.numbers, return_inverse=True)[1]
    first = np.unique(numbers, return_index=True)[1]
    of_group = question.targets[first]
    if (of_group[numbers] == question.targets).all():
        return rng.permutation(of_group)[numbers]
    return rng.permutation(question.targets)
