"""Linear probes of many sites at once, each beside what could be told without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from hooked_asr.probes.cross_validation import Plan, final, of_chance, of_majority, probed
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.estimators import Linear
from hooked_asr.probes.features import as_features
from hooked_asr.probes.folds import given_fold, outer_folds
from hooked_asr.probes.linear import LinearProbe
from hooked_asr.probes.origin import NOBODYS, ProbeOrigin
from hooked_asr.probes.question import Label, as_question
from hooked_asr.probes.result import MAJORITY, SHUFFLED, ProbeResult
from hooked_asr.probes.scores import Score


def fit_probes(
    features: Mapping[str, Any],
    labels: Any,
    *,
    groups: Any = None,
    split: Any = None,
    task: str = "classification",
    folds: int = 10,
    seed: int = 0,
    baselines: Mapping[str, Any] | None = None,
    n_permutations: int = 10,
    n_resamples: int = 2000,
    name: str = "label",
    origin: ProbeOrigin = NOBODYS,
    progress: bool = True,
) -> ProbeResult:
    """Probe each site: how well a linear map of its activations tells the label of unseen groups.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> sides = np.arange(40) % 2 == 0
    >>> told = rng.normal(size=(40, 3)) + 9 * sides[:, None]
    >>> found = fit_probes({"a": told, "b": rng.normal(size=(40, 3))}, sides, progress=False)
    >>> found.best(), found.scores["a"]["accuracy"].value
    ('a', 1.0)

    - `features`: site -> `[row d]`, an array, a tensor or a memory-mapped one; one is in memory at
      a time.
    - `labels`: a text, bool or number for each row. Of two classes the second in order is the
      positive one (of F1, AUC and `LinearProbe.direction`).
    - `groups`: what rows share that are no independent ones (a speaker, a recording). No group is
      ever on both sides: not of a fold, not of the folds in which the penalty is chosen.
    - `split`: "train" or "test" for each row, in place of folds.
    - `task`: "classification" (logistic regression, multinomial for more than two classes), or
      "regression" (ridge). Features are standardised by the rows that are fitted to; the penalty is
      chosen from a small grid (`estimators.CS`, `ALPHAS`) in five folds among these.
    - `folds`: stratified by class; as many as there are groups leave out one each.
    - `baselines`: more features to probe in the same way, by name: a matrix `[row d]` set beside
      every site, or a mapping site -> `[row d]`. See `log_mel_features` and `random_weights`. The
      commonest answer and shuffled labels (`n_permutations` times; their interval holds 95 % of
      them) are always there.
    - `n_resamples`: of groups, for the intervals of all other scores. Outputs of all folds are
      scored together. The interval is of the rows that are scored, the fitted probes given.
    - `name`, `origin`: what is told, and of which model; kept with the result and its probes.

    With ridge regression, and with AUC, chance lies a little lower than 0 and 0.5: a fold's mean
    is high where that of the rest is low.

    Raises `ProbeError` for labels, groups, splits and features that do not fit or tell nothing.
    """
    more = dict(baselines or {})
    _check(features, more, n_permutations, n_resamples)
    question = as_question(labels, groups, task)
    parts = outer_folds(question, folds, seed) if split is None else given_fold(question, split)
    plan = Plan.of(question, parts, n_permutations, n_resamples, seed)
    total = (len(features) + sum(1 for _ in _matrices(more))) * len(plan.parts)
    # Threads that wait for each other in products this small cost ten times what they save.
    with (
        threadpool_limits(1),
        tqdm(total=total, desc=f"probing {name}", unit="fold", disable=not progress) as bar,
    ):
        sites = {site: _site(site, one, plan, bar) for site, one in features.items()}
        beside = {SHUFFLED: {site: one.by_chance for site, one in sites.items()}}
        for called, of, one in _matrices(more):
            found = _scores_of(f"baseline {called!r}", one, plan, bar)
            beside.setdefault(called, {}).update(dict.fromkeys(of or features, found))
    return ProbeResult(
        name=name,
        task=task,
        classes=plan.question.classes,
        sites=list(features),
        scores={site: one.scores for site, one in sites.items()},
        baselines={MAJORITY: dict.fromkeys(features, of_majority(plan)), **beside},
        rows=plan.tested.tolist(),
        labels=plan.asked.labels,
        groups=plan.asked.groups,
        predicted={site: one.predicted for site, one in sites.items()},
        penalties={site: one.penalties for site, one in sites.items()},
        settings=_settings(plan, split),
        origin=origin,
        probes={site: _probe(one, plan, site, name, origin) for site, one in sites.items()},
    )


@dataclass(frozen=True, eq=False)
class _Site:
    """What came of one site."""

    scores: dict[str, Score]
    by_chance: dict[str, Score]
    predicted: list[Label]
    penalties: list[float]  # of each fold
    line: Linear
    penalty: float  # of the line


def _site(site: str, given: Any, plan: Plan, bar: Any) -> _Site:
    features = as_features(site, given, len(plan.question))
    found = probed(features, plan, bar.update)
    line, penalty = final(features, plan)
    return _Site(
        plan.scored(found.outputs),
        of_chance(found, plan),
        plan.told(found.outputs),
        found.penalties,
        line,
        penalty,
    )


def _scores_of(called: str, given: Any, plan: Plan, bar: Any) -> dict[str, Score]:
    features = as_features(called, given, len(plan.question))
    return plan.scored(probed(features, plan, bar.update, chance=False).outputs)


def _probe(one: _Site, plan: Plan, site: str, name: str, origin: ProbeOrigin) -> LinearProbe:
    return LinearProbe(
        torch.from_numpy(one.line.weights).float(),
        torch.from_numpy(one.line.bias).float(),
        plan.question.classes,
        name,
        site,
        origin,
        one.penalty,
        one.scores,
    )


# --- What is asked --------------------------------------------------------------------------------


def _settings(plan: Plan, split: Any) -> dict[str, Any]:
    return {
        "split": split is not None,
        "folds": len(plan.parts),
        "fitted": len(plan.whole.fitted),
        "seed": plan.seed,
        "n_permutations": len(plan.shuffled),
        "n_resamples": plan.n_resamples,
    }


def _check(
    features: Mapping[str, Any], baselines: Mapping[str, Any], n_permutations: int, n_resamples: int
) -> None:
    if not features:
        raise ProbeError("there are no features: give at least one site, as site -> [row d]")
    for name, number in (("n_permutations", n_permutations), ("n_resamples", n_resamples)):
        if number < 1:
            raise ProbeError(f"{name} is at least 1; got {number}")
    for name, one in baselines.items():
        if name in (MAJORITY, SHUFFLED):
            raise ProbeError(f"the baseline {name!r} is always there: call yours something else")
        if isinstance(one, Mapping) and one.keys() != features.keys():
            missing = ", ".join(sorted(features.keys() ^ one.keys()))
            raise ProbeError(
                f"baseline {name!r} has other sites than the features ({missing}): give it the "
                "same ones, or one matrix for all"
            )


def _matrices(baselines: Mapping[str, Any]) -> Iterator[tuple[str, list[str] | None, Any]]:
    """Each matrix to probe: of which baseline, for which sites (None for all)."""
    for called, given in baselines.items():
        if isinstance(given, Mapping):
            for site, one in given.items():
                yield called, [site], one
        else:
            yield called, None, given
