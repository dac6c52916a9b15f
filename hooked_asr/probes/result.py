"""The scores of probes, site by site, beside those of their baselines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch

from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.linear import LinearProbe, as_score
from hooked_asr.probes.origin import NOBODYS, ProbeOrigin
from hooked_asr.probes.plot import score_curves
from hooked_asr.probes.question import Label
from hooked_asr.probes.report import write_report
from hooked_asr.probes.scores import LOWER_IS_BETTER, Score, score_names
from hooked_asr.viz.heatmap import heatmap

PROBE, MAJORITY, SHUFFLED = "probe", "majority", "shuffled"

Scores = dict[str, dict[str, Score]]  # site -> score


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """How well each site's probe tells unseen groups apart.

    - `name`: what is told; `task`; `classes`: sorted, None for numbers.
    - `scores`: site -> score; `baselines`: baseline -> site -> score, "majority" and "shuffled"
      among them.
    - `rows`: those that were scored; `labels`, `groups`, and what each site's probe made of them,
      `predicted`, are in their order.
    - `penalties`: site -> the penalty of each fold.
    - `settings`: of the fit. `origin`: of the features.
    - `probes`: of each site, fitted to all rows (of a given split to those of "train"). They are
      not in the JSON file; each has a file of its own (`LinearProbe.save`).
    """

    name: str
    task: str
    classes: list[Label] | None
    sites: list[str]
    scores: Scores
    baselines: dict[str, Scores]
    rows: list[int]
    labels: list[Label]
    groups: list[str] | None
    predicted: dict[str, list[Label]]
    penalties: dict[str, list[float]]
    settings: dict[str, Any]
    origin: ProbeOrigin = NOBODYS
    probes: dict[str, LinearProbe] = field(default_factory=dict)

    # --- Numbers ----------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """A row for each site and score: value, ends of its interval, and those of each baseline.

        Columns of a baseline are its name, with `_low` and `_high`.
        """
        return pd.DataFrame(
            {
                "site": site,
                "score": score,
                **_columns("value", self.scores[site][score], ""),
                **{
                    key: number
                    for called, of in self.baselines.items()
                    for key, number in _columns(called, of[site][score], f"{called}_").items()
                },
            }
            for site in self.sites
            for score in score_names(self.task)
        )

    def best(self, score: str | None = None) -> str:
        """The site with the best score (accuracy, or R²); of several the first.

        The best of many is a little lucky: its score on other data will be lower.

        Raises `ProbeError` for a score that there is none of.
        """
        score = self._score(score)
        sign = -1 if score in LOWER_IS_BETTER else 1
        return max(self.sites, key=lambda site: sign * self.scores[site][score].value)

    def confusion(self, site: str | None = None) -> pd.DataFrame:
        """How many rows of each class (down) were taken for which (across), at the best site.

        Raises `ProbeError` for numbers, and for a site that was not probed.
        """
        if self.classes is None:
            raise ProbeError("numbers are not confused with each other: see `predicted`")
        site = self._site(site)
        place = {one: i for i, one in enumerate(self.classes)}
        counts = np.zeros((len(place), len(place)), int)
        for true, told in zip(self.labels, self.predicted[site], strict=True):
            counts[place[true], place[told]] += 1
        names = pd.Index(self.classes, name="true"), pd.Index(self.classes, name="told")
        return pd.DataFrame(counts, index=names[0], columns=names[1])

    def probe(self, site: str | None = None) -> LinearProbe:
        """The probe of a site, by default of the best.

        Raises `ProbeError` for a site that was not probed, or a result read from a file.
        """
        site = self._site(site)
        if site not in self.probes:
            raise ProbeError(
                "a result in a file holds no probes: save each by itself (`probe(site).save(…)`), "
                "and read it with LinearProbe.load"
            )
        return self.probes[site]

    # --- Figures ----------------------------------------------------------------------------------

    def plot(self, score: str | None = None) -> alt.LayerChart:
        """A score over the sites, its interval as a band; baselines are dashed.

        Raises `ProbeError` for a score that there is none of.
        """
        score = self._score(score)
        lines = {PROBE: self.scores, **self.baselines}
        drawn = {
            called: {site: of[site][score] for site in self.sites} for called, of in lines.items()
        }
        return score_curves(drawn, score, title=f"{self.name}: {score}", subtitle=self._about)

    def plot_confusion(self, site: str | None = None) -> alt.Chart | alt.FacetChart:
        """The shares of each class's rows, as colours.

        Raises `ProbeError` as `confusion`.
        """
        site = self._site(site)
        counts = torch.tensor(self.confusion(site).to_numpy().tolist()).double()
        names = [str(one) for one in self.classes or []]
        return heatmap(
            counts / counts.sum(1, keepdim=True).clamp(min=1),
            {"true": names, "told": names},
            label="share",
            title=f"{self.name} at {site}",
            centred=False,
            bounds=(0.0, 1.0),
        )

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write one page (.html) with all there is: task, data, scores, curves, confusions.

        Raises `ProbeError` for another suffix.
        """
        write_report(self, path)

    # --- Files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the probes (.json), the table (.csv), or the curves (.html, .png,
        .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            own = _read(found.pop("scores"))
            beside = {called: _read(one) for called, one in found.pop("baselines").items()}
            origin = ProbeOrigin(**found.pop("origin"))
            return cls(scores=own, baselines=beside, origin=origin, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved probes: {error!r}") from error

    def _plain(self) -> dict[str, Any]:
        said = {name: value for name, value in vars(self).items() if name != "probes"}
        baselines = {called: _written(one) for called, one in self.baselines.items()}
        return said | {
            "scores": _written(self.scores),
            "baselines": baselines,
            "origin": asdict(self.origin),
        }

    # --- What is meant ----------------------------------------------------------------------------

    @property
    def data(self) -> str:
        """How many rows and groups, and how they were split."""
        rows = f"{len(self.rows)} rows"
        groups = f" of {len(set(self.groups))} groups" if self.groups is not None else ""
        if self.settings["split"]:
            return f"{rows}{groups} tested, {self.settings['fitted']} rows fitted to"
        return f"{rows}{groups}, {self.settings['folds']} folds"

    @property
    def _about(self) -> str:
        model = f"{Path(self.origin.model).name}; " if self.origin.model else ""
        return f"{model}{self.data}; bands: 95 % intervals"

    def _score(self, score: str | None) -> str:
        names = score_names(self.task)
        if score is not None and score not in names:
            raise ProbeError(f"scores of a {self.task} are {', '.join(names)}; got {score!r}")
        return score or names[0]

    def _site(self, site: str | None) -> str:
        if site is not None and site not in self.sites:
            raise ProbeError(f"sites that were probed are {', '.join(self.sites)}; got {site!r}")
        return site or self.best()


def _columns(value: str, score: Score, prefix: str) -> dict[str, float]:
    return {value: score.value, f"{prefix}low": score.low, f"{prefix}high": score.high}


def _written(found: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    return {
        site: {name: asdict(score) for name, score in scores.items()}
        for site, scores in found.items()
    }


def _read(said: Mapping[str, Any]) -> Scores:
    return {
        site: {name: as_score(one) for name, one in scores.items()} for site, scores in said.items()
    }
