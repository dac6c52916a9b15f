"""One feature matrix, probed: every fold fitted, scored and compared with shuffled labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Num
from sklearn.dummy import DummyClassifier, DummyRegressor

from hooked_asr.probes.estimators import (
    Estimator,
    Linear,
    Logistic,
    Outputs,
    Ridge,
    Standardised,
    choose,
    logits,
)
from hooked_asr.probes.features import Features
from hooked_asr.probes.folds import Fold, inner_folds
from hooked_asr.probes.question import Label, Question, Rows
from hooked_asr.probes.scores import Score, scores, spread
from hooked_asr.probes.shuffling import shuffled


@dataclass(frozen=True, eq=False)
class Part:
    """Rows to fit to, `inner` folds among them, and rows to score on."""

    fitted: Rows
    inner: list[Fold]
    tested: Rows


@dataclass(frozen=True, eq=False)
class Plan:
    """What is asked of every feature matrix, and in which parts.

    - `parts`: one for each fold; `whole`: the rows that a final probe is fitted to.
    - `shuffled`: the targets in other orders, `[order row]`.
    """

    question: Question
    parts: list[Part]
    whole: Part
    shuffled: Num[np.ndarray, "order row"]
    n_resamples: int
    seed: int

    @classmethod
    def of(
        cls, question: Question, folds: list[Fold], n_permutations: int, n_resamples: int, seed: int
    ) -> Plan:
        """With all that is drawn by chance; of a single fold only the rows to fit to are fitted."""
        rng = np.random.default_rng(seed)
        parts = [_part(question, *fold, seed) for fold in folds]
        nothing = np.zeros(0, int)
        everything = _part(question, np.arange(len(question)), nothing, seed)
        return cls(
            question,
            parts,
            everything if len(parts) > 1 else parts[0],
            np.stack([shuffled(question, rng) for _ in range(n_permutations)]),
            n_resamples,
            seed,
        )

    @property
    def tested(self) -> Rows:
        return np.sort(np.concatenate([part.tested for part in self.parts]))

    @property
    def estimator(self) -> Estimator:
        classes = self.question.classes
        return Ridge() if classes is None else Logistic(len(classes))

    @property
    def n_outputs(self) -> int:
        classes = self.question.classes or []
        return len(classes) if len(classes) > 2 else 1

    @property
    def asked(self) -> Question:
        """The question of the tested rows."""
        return self.question.of(self.tested)

    def told(self, outputs: Outputs) -> list[Label]:
        """What outputs of tested rows say: classes, or numbers."""
        classes = self.question.classes
        if classes is None:
            return list(outputs[:, 0].tolist())
        return [classes[place] for place in logits(outputs).argmax(1)]

    def scored(self, outputs: Outputs) -> dict[str, Score]:
        """Scores of the outputs of tested rows, with intervals."""
        asked = self.asked
        groups = np.unique(asked.numbers, return_inverse=True)[1]
        targets, n = asked.targets, self.n_resamples
        return scores(asked.task, outputs, targets, groups, n, self.seed)


def _part(question: Question, fitted: Rows, tested: Rows, seed: int) -> Part:
    return Part(fitted, inner_folds(question.of(fitted), seed), tested)


@dataclass(frozen=True, eq=False)
class Probed:
    """What came of a feature matrix.

    `outputs`: of the tested rows; `by_chance`: of these, by probes fitted to shuffled labels;
    `penalties`: each fold's.
    """

    outputs: Outputs
    by_chance: Float64[np.ndarray, "order row out"]
    penalties: list[float]


def probed(
    features: Features, plan: Plan, done: Callable[[], object], chance: bool = True
) -> Probed:
    """Every tested row told by a probe that was fitted to other groups; `done` after each fold.

    Shuffled labels get the penalties that the real ones asked for.
    """
    targets = [plan.question.targets, *(plan.shuffled if chance else ())]
    outputs = np.zeros((len(targets), len(plan.question), plan.n_outputs))
    penalties = []
    for part in plan.parts:
        rows, penalty = Standardised(features[part.fitted]), _chosen(features, plan, part)
        for of, told in zip(targets, outputs, strict=True):
            (line,) = rows.fitted(plan.estimator, of[part.fitted], (penalty,))
            told[part.tested] = line(features[part.tested])
        penalties.append(penalty)
        done()
    found = outputs[:, plan.tested]
    return Probed(found[0], found[1:], penalties)


def final(features: Features, plan: Plan) -> tuple[Linear, float]:
    """The map fitted to all rows that may be, and its penalty."""
    rows, penalty = plan.whole.fitted, _chosen(features, plan, plan.whole)
    targets = plan.question.targets[rows]
    (line,) = Standardised(features[rows]).fitted(plan.estimator, targets, (penalty,))
    return line, penalty


def _chosen(features: Features, plan: Plan, part: Part) -> float:
    targets = plan.question.targets[part.fitted]
    return choose(plan.estimator, features[part.fitted], targets, part.inner)


def of_chance(found: Probed, plan: Plan) -> dict[str, Score]:
    """Scores on shuffled labels: their mean and spread."""
    alone = np.zeros(len(plan.tested), int)  # no intervals: the shufflings make one
    return spread(
        [
            scores(plan.question.task, told, order[plan.tested], alone, 0, plan.seed)
            for told, order in zip(found.by_chance, plan.shuffled, strict=True)
        ]
    )


def of_majority(plan: Plan) -> dict[str, Score]:
    """Scores of who says the same of every row of a fold: the commonest class, or the mean."""
    targets, classes = plan.question.targets, plan.question.classes
    dummy = DummyRegressor() if classes is None else DummyClassifier(strategy="most_frequent")
    outputs = np.zeros((len(targets), plan.n_outputs))
    told = np.zeros(len(targets))
    for part in plan.parts:
        dummy.fit(part.fitted[:, None], targets[part.fitted])
        told[part.tested] = dummy.predict(part.tested[:, None])
    if classes is None:
        outputs[:, 0] = told
    elif len(classes) == 2:
        outputs[:, 0] = told - 0.5
    else:
        outputs[np.arange(len(told)), told.astype(int)] = 1.0
    found = plan.scored(outputs[plan.tested])
    return found | _UNTOLD[plan.question.task]


# A constant puts no row before another: what differs is only from fold to fold.
_UNTOLD = {
    "classification": {"auc": Score(0.5, 0.5, 0.5)},
    "regression": {"pearson": Score(float("nan"), float("nan"), float("nan"))},
}
