"""Probes of pairs together: means, the best, the matrix, and an interval over words."""

import json
from typing import Any

import numpy as np
import pytest

from hooked_asr.features import FeatureStore
from hooked_asr.probes import PairScores, ProbeError, ProbeResult, TaskResult, fit_probes
from hooked_asr.probes.pairs import pair_scores

CATEGORIES = ("animal", "body", "food")
WORDS = 12  # of each category, each said twice


def fitted(first: str, second: str, apart: float) -> ProbeResult:
    """Features whose first coordinate tells the categories `apart` standard deviations."""
    rng = np.random.default_rng(0)
    labels = [one for one in (first, second) for _ in range(2 * WORDS)]
    groups = [f"{label} {i // 2 % WORDS}" for i, label in enumerate(labels)]
    x = rng.standard_normal((len(labels), 3)).astype(np.float32)
    near = x.copy()
    near[:, 0] += apart * np.array([label == first for label in labels])
    options: dict[str, Any] = {"folds": 4, "n_permutations": 2, "n_resamples": 20}
    return fit_probes(
        {"noise": x, "told": near}, labels, groups=groups, name=f"{first} or {second}",
        baselines={"none": x}, progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, ProbeResult]:
    made = [
        fitted("animal", "body", 9.0),
        fitted("animal", "food", 2.0),
        fitted("body", "food", 0.0),
    ]
    return {one.name: one for one in made}


def task_result(results: dict[str, ProbeResult]) -> TaskResult:
    """As `probe_task` gives it, but for features, which nobody reads here."""
    return TaskResult("semantic", results, FeatureStore.__new__(FeatureStore), {}, "")


@pytest.fixture(scope="module")
def pairs(results: dict[str, ProbeResult]) -> PairScores:
    return pair_scores(task_result(results))


def accuracies(results: dict[str, ProbeResult], site: str) -> list[float]:
    """As a loop over rows counts them."""
    return [
        float(np.mean([a == b for a, b in zip(one.labels, one.predicted[site], strict=True)]))
        for one in results.values()
    ]


def test_means_best_and_matrix_are_those_of_counted_rows(
    pairs: PairScores, results: dict[str, ProbeResult]
) -> None:
    told = accuracies(results, "told")
    assert pairs.categories == list(CATEGORIES)
    assert pairs.mean("told").value == pytest.approx(np.mean(told))
    pair, best = pairs.best("told")
    assert (pair, best.value) == (("animal", "body"), pytest.approx(max(told)))
    table = pairs.matrix("told")
    assert table.loc["food", "animal"] == table.loc["animal", "food"] == pytest.approx(told[1])
    assert np.isnan(np.diag(table)).all()
    row = pairs.to_pandas().set_index("site").loc["told"]
    beside = [one.baselines["none"]["told"]["accuracy"].value for one in results.values()]
    assert row["none"] == pytest.approx(np.mean(beside))
    assert row["best_pair"] == "animal or body"


def test_the_interval_is_over_words_drawn_alike_in_all_pairs(
    pairs: PairScores, results: dict[str, ProbeResult]
) -> None:
    rng = np.random.default_rng(1)
    means = []
    for _ in range(1500):  # the slow way: words drawn one by one, rows counted one by one
        drawn = {
            category: np.bincount(rng.integers(0, WORDS, WORDS), minlength=WORDS)
            for category in CATEGORIES
        }
        of_pairs = []
        for one in results.values():
            right = total = 0
            told = zip(one.labels, one.groups or [], one.predicted["told"], strict=True)
            for label, word, said in told:
                times = drawn[str(label)][int(word.split()[-1])]
                right, total = right + times * (said == label), total + times
            of_pairs.append(right / total)
        means.append(np.mean(of_pairs))
    low, high = np.quantile(means, (0.025, 0.975))
    found = pairs.mean("told")
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_pairs_are_drawn_and_refused(pairs: PairScores, results: dict[str, ProbeResult]) -> None:
    drawn = json.dumps(pairs.plot().to_dict())
    assert all(name in drawn for name in ("mean over pairs", "best pair", "shuffled", "none"))
    assert "animal" in json.dumps(pairs.plot_matrix().to_dict())
    with pytest.raises(ProbeError, match="sites are noise, told"):
        pairs.mean("nowhere")
    with pytest.raises(ProbeError, match="baselines are"):
        pairs.best("told", "nothing")
    one = next(iter(results.values()))
    three = fit_probes(
        {"a": np.random.default_rng(0).standard_normal((30, 2))},
        ["a", "b", "c"] * 10,
        folds=3, n_permutations=1, n_resamples=10, progress=False,
    )  # fmt: skip
    with pytest.raises(ProbeError, match="no two categories"):
        pair_scores(task_result({"one": one, "x": three}))
