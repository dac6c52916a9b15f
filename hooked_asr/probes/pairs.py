"""Many probes of two categories each, as one result: their mean, the best, and who is told from
whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.plot import score_curves
from hooked_asr.probes.result import ProbeResult
from hooked_asr.probes.scores import Score
from hooked_asr.probes.tasks import TaskResult
from hooked_asr.viz.heatmap import heatmap

_MEAN, _BEST = "mean over pairs", "best pair"
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PairScores:
    """The accuracies of probes that tell two categories apart each.

    `results`: by the two categories, in alphabetical order.
    """

    results: dict[tuple[str, str], ProbeResult]

    @property
    def categories(self) -> list[str]:
        return sorted({name for pair in self.results for name in pair})

    @property
    def sites(self) -> list[str]:
        return next(iter(self.results.values())).sites

    def mean(self, site: str, baseline: str | None = None) -> Score:
        """The mean accuracy over all pairs at a site, or that of one of their baselines there.

        The interval (not of a baseline) is bootstrapped over words: those of each category are
        drawn anew, the same in all pairs, as one word that is told well is so in many.

        Raises `ProbeError` for a site or a baseline that there is not.
        """
        values = self._values(site, baseline)
        whole = float(np.mean(list(values.values())))
        if baseline is not None:
            return Score(whole, math.nan, math.nan)
        low, high = np.quantile(self._resampled(site), (0.025, 0.975))
        return Score(whole, float(low), float(high))

    def best(self, site: str, baseline: str | None = None) -> tuple[tuple[str, str], Score]:
        """The pair that is told apart best at a site, and its accuracy.

        The best of many is a little lucky: compare it with the best of shuffled labels.
        """
        values = self._values(site, baseline)
        pair = max(values, key=lambda one: values[one])
        if baseline is not None:
            return pair, Score(values[pair], math.nan, math.nan)
        return pair, self.results[pair].scores[site]["accuracy"]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each site: the mean accuracy and its interval, the best pair, and baselines."""
        rows = []
        for site in self.sites:
            mean, (pair, best) = self.mean(site), self.best(site)
            row = {"site": site, "mean": mean.value, "low": mean.low, "high": mean.high}
            row |= {"best": best.value, "best_pair": " or ".join(pair)}
            rows.append(row | {one: self.mean(site, one).value for one in self._baselines})
        return pd.DataFrame(rows)

    def matrix(self, site: str | None = None) -> pd.DataFrame:
        """The accuracy of each pair at a site, by default the last; symmetrical, NaN on itself."""
        values = self._values(site or self.sites[-1], None)
        names = self.categories
        table = pd.DataFrame(math.nan, index=names, columns=names)
        for (one, other), value in values.items():
            table.loc[one, other] = table.loc[other, one] = value
        return table

    def plot(self) -> alt.LayerChart:
        """Mean and best accuracy over the sites; baselines are means over pairs."""
        lines: dict[str, Mapping[str, Score]] = {
            _MEAN: {site: self.mean(site) for site in self.sites},
            _BEST: {site: self.best(site)[1] for site in self.sites},
        }
        for name in self._baselines:
            lines[name] = {site: self.mean(site, name) for site in self.sites}
        n = len(self.categories)
        about = f"{len(self.results)} pairs of {n} categories; bands: 95 % intervals"
        return score_curves(lines, "accuracy", title="two categories told apart", subtitle=about)

    def plot_matrix(self, site: str | None = None) -> alt.Chart | alt.FacetChart:
        """The accuracy of each pair as colours, at a site, by default the last."""
        site = site or self.sites[-1]
        table = self.matrix(site)
        names = list(table.index)
        return heatmap(
            torch.tensor(table.to_numpy().tolist()),
            {"category": names, "other": names},
            label="accuracy",
            title=f"told apart at {site}",
            centred=False,
            bounds=(0.0, 1.0),
        )

    @property
    def _baselines(self) -> list[str]:
        return list(next(iter(self.results.values())).baselines)

    def _values(self, site: str, baseline: str | None) -> dict[tuple[str, str], float]:
        if site not in self.sites:
            raise ProbeError(f"sites are {', '.join(self.sites)}; got {site!r}")
        if baseline is not None and baseline not in self._baselines:
            raise ProbeError(f"baselines are {', '.join(self._baselines)}; got {baseline!r}")
        return {
            pair: (one.scores if baseline is None else one.baselines[baseline])[site][
                "accuracy"
            ].value
            for pair, one in self.results.items()
        }

    def _resampled(self, site: str) -> Float64[np.ndarray, " resample"]:
        """The mean over pairs where the words of each category are drawn anew."""
        rng = np.random.default_rng(0)
        words = self._words()
        times = {
            category: rng.multinomial(len(of), np.full(len(of), 1 / len(of)), _RESAMPLES)
            for category, of in words.items()
        }
        places = {
            (category, word): i for category, of in words.items() for i, word in enumerate(of)
        }
        total = np.zeros(_RESAMPLES)
        for one in self.results.values():
            said = list(zip(map(str, one.labels), one.groups or [], strict=True))
            weight = np.stack([times[label][:, places[label, word]] for label, word in said], 1)
            right = np.array(one.predicted[site]) == np.array(one.labels)
            total += (weight @ right) / np.maximum(weight.sum(1), 1)
        return total / len(self.results)

    def _words(self) -> dict[str, list[str]]:
        found: dict[str, dict[str, None]] = {name: {} for name in self.categories}
        for one in self.results.values():
            for label, word in zip(one.labels, one.groups or [], strict=True):
                found[str(label)][word] = None
        return {name: list(of) for name, of in found.items()}


def pair_scores(found: TaskResult) -> PairScores:
    """The pairs of `probe_task("semantic", …)` together.

    Raises `ProbeError` for probes that tell other than two classes apart.
    """
    pairs = {}
    for one in found.results.values():
        if one.classes is None or len(one.classes) != 2:
            raise ProbeError(f"{one.name!r} tells no two categories apart: probe 'semantic'")
        first, second = map(str, one.classes)
        pairs[first, second] = one
    return PairScores(pairs)
