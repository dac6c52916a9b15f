"""What the features of a sparse autoencoder were found to go with, on a corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.alignments import Aligned
from hooked_asr.sae.reading.excerpts import Excerpt, Peaks
from hooked_asr.sae.reading.feature import FeatureNote, LabelScore, no_score
from hooked_asr.sae.reading.labels import Association
from hooked_asr.sae.reading.peaks import excerpts_of
from hooked_asr.sae.reading.plot import scores_figure
from hooked_asr.sae.reading.purity import Purity
from hooked_asr.sae.reading.row_labels import ReadClip


@dataclass(frozen=True)
class Control:
    """What another reading came to, the same way: of a model with random weights, say.

    - `model`: its name; `n_features`: how many were active.
    - `labels`: kind -> label -> F1 of the feature that tells it best (the best on the first half of
      the clips); `best`: kind -> F1 of each feature's best label.
    """

    model: str
    n_features: int
    labels: dict[str, dict[str, float]]
    best: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class FeatureReading:
    """Where each feature is active, and which labels it goes with.

    - `site`, `model`, `weights`: of the autoencoder; `clock`: what the site's positions are.
    - `numbers`: the features that were read; arrays `[feature …]` are in their order.
    - `clips`: those that were read; `failed`: why others were not; `n_rows`: positions of all.
    - `density`: share of the positions in which a feature is active; `mean`: its mean activation
      there, `greatest` its greatest; `histogram`: how many of its activations are in each of equal
      steps from 0 to `greatest`.
    - `peaks`: see `excerpts`.
    - `associations`, `purities`: of each kind of label ("phone", "word", columns).
    - `alignments`: kind -> clip -> what is heard when. `control`: see `Control`.
    - `settings`: how it was read.
    """

    site: str
    model: str
    weights: str
    clock: str
    numbers: list[int]
    clips: list[ReadClip]
    density: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    greatest: Float[np.ndarray, " feature"]
    histogram: Int[np.ndarray, "feature step"]
    peaks: Peaks
    associations: dict[str, Association]
    purities: dict[str, Purity]
    alignments: dict[str, dict[str, list[Aligned]]]
    settings: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)
    control: Control | None = None

    def __repr__(self) -> str:
        kinds = ", ".join(self.kinds) or "no labels"
        return f"<{len(self.numbers)} features of {self.site} on {len(self.clips)} clips: {kinds}>"

    @property
    def kinds(self) -> list[str]:
        """The kinds of labels that there are."""
        return list(self.associations)

    @property
    def n_rows(self) -> int:
        return sum(clip.rows for clip in self.clips)

    # --- Features ---------------------------------------------------------------------------------

    @property
    def features(self) -> Mapping[int, FeatureNote]:
        """Each feature by its number: `reading.features[12].excerpts[0]`."""
        return _Features(self)

    @property
    def active(self) -> list[int]:
        """Those that are active anywhere."""
        return [number for number, n in zip(self.numbers, self.density, strict=True) if n > 0]

    # --- Tables -----------------------------------------------------------------------------------

    def table(self, kind: str) -> pd.DataFrame:
        """A row for each active feature: the label of a kind that it goes best with.

        The label, and the threshold, are chosen on one half of the clips; `f1` and `bits` (mutual
        information) are of the other half. `shuffled`: F1 of this label, shuffled; `chance`: of the
        best shuffled one. `random`: F1 of the best feature of the control, where there is one, for
        this label. `mass`, `active`: shares of its activation, and of its active positions, that
        fall on the label, and `base`, of all positions. Sorted by `f1`.

        Raises `SAEError` for a kind that was not read.
        """
        found = self.association(kind)
        best = found.best()
        rows = []
        for place, number in enumerate(self.numbers):
            if not self.density[place]:
                continue
            label = int(best[place])
            told = self._score(kind, place, label) if label >= 0 else no_score(kind)
            own = {name: value for name, value in vars(told).items() if name != "kind"}
            chance = float(found.chance[place])
            density = float(self.density[place])
            rows.append({"feature": number, "density": density, **own, "chance": chance})
        columns = ["feature", "density", *vars(no_score(kind)), "chance"]
        table = pd.DataFrame(rows, columns=[name for name in columns if name != "kind"])
        return table.sort_values("f1", ascending=False, kind="stable", ignore_index=True)

    def purity(self, kind: str) -> pd.DataFrame:
        """A row for each active feature and label on which any of its activation falls.

        Raises `SAEError` for a kind that was not read.
        """
        self.association(kind)
        found = self.purities[kind]
        places, labels = np.nonzero(found.mass)
        return pd.DataFrame(
            {
                "feature": np.array(self.numbers)[places],
                "label": np.array(found.names, object)[labels],
                "mass": found.mass[places, labels],
                "active": found.active[places, labels],
                "base": found.base[labels],
            }
        ).sort_values(["feature", "mass"], ascending=[True, False], ignore_index=True)

    def count(self, kind: str, f1: float = 0.6) -> dict[str, float]:
        """How many features tell their best label of a kind with such an F1 or a better one.

        `shuffled`: with shuffled labels (mean over the shuffles); `random`: of the control, where
        there is one.

        Raises `SAEError` for a kind that was not read.
        """
        found = self.association(kind)
        counts = {
            "features": float((found.best_f1() >= f1).sum()),
            "shuffled": float((found.chance >= f1).sum()),
        }
        if self.control is not None and kind in self.control.best:
            counts["random"] = float(sum(one >= f1 for one in self.control.best[kind]))
        return counts

    def plot(self, kind: str) -> alt.ConcatChart:
        """Histograms of each feature's F1 for its best label of a kind, and of the controls'.

        Raises `SAEError` for a kind that was not read.
        """
        found = self.association(kind)
        scores = {"features": found.best_f1().tolist(), "labels shuffled": found.chance.tolist()}
        if self.control is not None and kind in self.control.best:
            scores[self.control.model] = self.control.best[kind]
        told = f"{Path(self.model).name}, {self.site}"
        return scores_figure(scores, title=f"How well features tell a {kind}", subtitle=told)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each active feature: how active it is, and its best label of each kind."""
        here = [place for place, n in enumerate(self.density) if n > 0]
        table = pd.DataFrame(
            {
                "feature": [self.numbers[place] for place in here],
                "density": self.density[here],
                "mean": self.mean[here],
                "greatest": self.greatest[here],
            }
        )
        for kind in self.kinds:
            own = self.table(kind).set_index("feature").reindex(table["feature"])
            table[kind] = own["label"].to_numpy()
            for name in ("f1", "bits", "shuffled", "random"):
                table[f"{kind}_{name}"] = own[name].to_numpy()
        return table

    def association(self, kind: str) -> Association:
        """All scores of a kind of label.

        Raises `SAEError` for a kind that was not read.
        """
        if kind not in self.associations:
            known = ", ".join(self.kinds) or "none"
            raise SAEError(f"there are no labels {kind!r}; this reading has {known}")
        return self.associations[kind]

    def as_control(self) -> Control:
        """What it came to, for another reading to be compared with."""
        return Control(
            self.model,
            len(self.active),
            {kind: found.by_label() for kind, found in self.associations.items()},
            {kind: found.best_f1().tolist() for kind, found in self.associations.items()},
        )

    # --- Files ------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to a folder: reading.safetensors, features.csv, and a table for each kind."""
        from hooked_asr.sae.reading.files import save

        save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FeatureReading:
        """What `save` wrote.

        Raises `SAEError` for a folder that holds no reading.
        """
        from hooked_asr.sae.reading.files import load

        return load(folder)

    # --- Parts ------------------------------------------------------------------------------------

    def note(self, number: int, top: int = 5) -> FeatureNote:
        """A feature with its `top` labels of each kind.

        Raises `SAEError` for one that was not read.
        """
        place = self._place(number)
        scores = [
            self._score(kind, place, label)
            for kind, found in self.associations.items()
            for label in found.ranked(place, top)
        ]
        return FeatureNote(
            number,
            float(self.density[place]),
            float(self.mean[place]),
            float(self.greatest[place]),
            self.histogram[place].tolist(),
            scores,
            self._excerpts(place),
        )

    def _place(self, number: int) -> int:
        if number not in self.numbers:
            raise SAEError(
                f"feature {number} was not read: there are {len(self.numbers)} "
                f"({self.numbers[0]} to {self.numbers[-1]})"
            )
        return self.numbers.index(number)

    def _score(self, kind: str, place: int, label: int) -> LabelScore:
        found, shares = self.associations[kind], self.purities[kind]
        name = found.names[label]
        random = np.nan
        if self.control is not None:
            random = self.control.labels.get(kind, {}).get(name, np.nan)
        return LabelScore(
            kind,
            name,
            float(found.f1[place, label]),
            float(found.bits[place, label]),
            float(found.threshold[place, label]),
            float(found.shuffled[place, label]),
            float(random),
            float(shares.mass[place, label]),
            float(shares.active[place, label]),
            float(shares.base[label]),
        )

    def _excerpts(self, place: int) -> list[Excerpt]:
        return excerpts_of(self.peaks, place, self.clips, self.clock, self.alignments)


class _Features(Mapping[int, FeatureNote]):
    """A reading's features, each made when it is asked for."""

    def __init__(self, reading: FeatureReading) -> None:
        self._reading = reading

    def __getitem__(self, number: int) -> FeatureNote:
        return self._reading.note(number)

    def __iter__(self) -> Iterator[int]:
        return iter(self._reading.numbers)

    def __len__(self) -> int:
        return len(self._reading.numbers)
