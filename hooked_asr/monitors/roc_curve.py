"""How many wrong transcripts an alarm finds, and how often it is false, at each threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from jaxtyping import Bool, Float64

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.monitors.errors import MonitorError
from hooked_asr.probes.scores import Score
from hooked_asr.probes.scores import scores as intervals
from hooked_asr.viz.roc import roc_curves


@dataclass(frozen=True)
class Alarms:
    """What comes of a threshold: the share of wrong transcripts that is flagged, `hits`, and that
    of right ones, `false_alarms`. Intervals are for this threshold, as it is.
    """

    threshold: float
    hits: Score
    false_alarms: Score


@dataclass(frozen=True, eq=False)
class Roc:
    """A score of transcripts, beside which of them are wrong: its ROC curve, and the area under it.

    - `scores`: higher is more alarming; `wrong`: what is to be found.
    - `groups`: what transcripts share that are no independent ones; the intervals draw these.
    - `auc`: how often a wrong transcript has the higher score of a pair; a tie counts half.
    """

    name: str
    scores: Float64[np.ndarray, " clip"]
    wrong: Bool[np.ndarray, " clip"]
    groups: list[Any]
    auc: Score

    def alarms(self, threshold: float) -> Alarms:
        """What comes of flagging all scores from a threshold on."""
        flagged = self.scores >= threshold
        return Alarms(threshold, *(self._share(flagged, of) for of in (self.wrong, ~self.wrong)))

    def at(self, false_alarms: float = 0.05) -> Alarms:
        """What comes of the lowest threshold that flags no more than this share of right ones.

        >>> curve = roc([0.9, 0.8, 0.7, 0.1], [True, False, True, False])
        >>> curve.at(0.5).threshold, curve.at(0.5).hits.value, curve.at(0.1).hits.value
        (0.7, 1.0, 0.5)

        Chosen and measured on the same transcripts it looks a little better than it is: take the
        threshold from some speakers' curve to the `alarms` of others'.

        Raises `MonitorError` for a share that is none.
        """
        if not 0 <= false_alarms <= 1:
            raise MonitorError(f"false alarms are a share, from 0 to 1; got {false_alarms}")
        thresholds, _, false = self._curve
        # Its last is below all others: the shares only grow.
        last = int(np.flatnonzero(false <= false_alarms)[-1])
        return self.alarms(float(thresholds[last]))

    def plot(self, *others: Roc, mark: float | None = 0.05) -> alt.LayerChart:
        """Hits over false alarms, also of other scores; `mark`: a share of these to be marked."""
        lines = {}
        for one in (self, *others):
            _, hits, false = one._curve
            auc = one.auc
            about = f"{one.name}: AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]"
            lines[about] = list(zip(false.tolist(), hits.tolist(), strict=True))
        n_wrong = int(self.wrong.sum())
        told = f"{n_wrong} wrong transcripts, {len(self.wrong) - n_wrong} right ones"
        return roc_curves(lines, mark=mark, subtitle=told)

    @property
    def _curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds, highest first, and the shares of wrong and of right ones from each on."""
        values, place = np.unique(-self.scores, return_inverse=True)
        shares = [
            np.bincount(place[of], minlength=len(values)).cumsum() / of.sum()
            for of in (self.wrong, ~self.wrong)
        ]
        first = np.zeros(1)
        hits, false = (np.concatenate([first, share]) for share in shares)
        return np.concatenate([[np.inf], -values]), hits, false

    def _share(self, flagged: Bool[np.ndarray, " clip"], of: Bool[np.ndarray, " clip"]) -> Score:
        groups = [group for group, chosen in zip(self.groups, of, strict=True) if chosen]
        found = bootstrap_means(flagged[of].astype(np.float64), groups, method="percentile")
        return Score(found.mean.item(), found.low.item(), found.high.item())


def roc(
    scores: Any,
    wrong: Any,
    groups: Any = None,
    *,
    name: str = "score",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Roc:
    """The ROC curve of a score that is to find wrong transcripts.

        table = monitor_corpus(model, monitor, "heard.csv").to_pandas()
        roc(table["hallucination"], table["wer"] > 0, table["group"]).at(0.05)

    - `scores`, `wrong`, `groups`: lists, arrays or columns, an entry for each transcript; without
      groups each stands alone.
    - `n_resamples`, `seed`: of groups, for the interval of the area.

    Raises `MonitorError` where these do not fit, a score is not finite, or there are no wrong or no
    right transcripts.
    """
    values, truth, own = _arrays(scores, wrong, groups)
    outputs = values[:, None]
    numbers = np.unique([str(one) for one in own], return_inverse=True)[1]
    found = intervals("classification", outputs, truth.astype(int), numbers, n_resamples, seed)
    return Roc(name, values, truth, own, found["auc"])


def auc_within(
    scores: Any,
    wrong: Any,
    within: Any,
    groups: Any = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """The area under the ROC curve over pairs of transcripts that share something: a noise, say.

    A score that only tells how hard a recording is puts wrong before right ones where some
    recordings are harder than others. Among equally hard ones it is at 0.5.

    >>> auc_within([0.9, 0.8, 0.2, 0.1], [True, True, False, False], ["a", "a", "a", "b"]).value
    1.0
    >>> auc_within([0.9, 0.9, 0.1, 0.1], [True, False, True, False], ["a", "a", "b", "b"]).value
    0.5

    - `within`: what each transcript has of it. The other arguments are `roc`'s; the interval is a
      percentile one, over resampled groups.

    Raises `MonitorError` as `roc`, and where no wrong transcript shares it with a right one.
    """
    values, truth, own = _arrays(scores, wrong, groups)
    strata = np.asarray([str(one) for one in within])
    if len(strata) != len(values):
        raise MonitorError(f"{len(values)} scores are within as many; got {len(strata)}")
    bad, good = np.flatnonzero(truth), np.flatnonzero(~truth)
    pairs = (strata[bad][:, None] == strata[good][None]).astype(np.float64)
    if not pairs.any():
        raise MonitorError("no wrong transcript shares it with a right one: compare other things")
    ahead = values[bad][:, None] - values[good][None]
    won = pairs * ((ahead > 0) + (ahead == 0) / 2)

    def area(counts: Float64[np.ndarray, "sample clip"]) -> Float64[np.ndarray, " sample"]:
        sums = [((counts[:, bad] @ one) * counts[:, good]).sum(1) for one in (won, pairs)]
        return sums[0] / np.where(sums[1] > 0, sums[1], np.nan)

    drawn = area(_resampled(own, n_resamples, seed))
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(set(own)) > 1 else (np.nan, np.nan)
    return Score(area(np.ones((1, len(values))))[0].item(), float(low), float(high))


def _resampled(
    groups: Sequence[Any], n_resamples: int, seed: int
) -> Float64[np.ndarray, "sample clip"]:
    """How often each clip is there, where as many groups are drawn with replacement."""
    names, place = np.unique([str(one) for one in groups], return_inverse=True)
    rng = np.random.default_rng(seed)
    each = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return each[:, place].astype(np.float64)


def _arrays(
    scores: Any, wrong: Any, groups: Any
) -> tuple[Float64[np.ndarray, "_"], Bool[np.ndarray, "_"], list[Any]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(wrong, dtype=bool)
    own = list(range(len(values))) if groups is None else list(groups)
    _check(values, truth, own)
    return values, truth, own


def _check(
    values: Float64[np.ndarray, "_"], wrong: Bool[np.ndarray, "_"], groups: Sequence[Any]
) -> None:
    if not len(values) == len(wrong) == len(groups):
        raise MonitorError(
            f"{len(values)} scores have as many truths and groups; got {len(wrong)} and "
            f"{len(groups)}"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise MonitorError(
            f"the score at {bad[0]} is {values[bad[0]]}: leave out transcripts that have none"
        )
    if not 0 < wrong.sum() < len(wrong):
        raise MonitorError(
            f"{int(wrong.sum())} of {len(wrong)} transcripts are wrong: a curve takes wrong and "
            "right ones"
        )
