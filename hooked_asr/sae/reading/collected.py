"""What is kept of each feature while they are gone through, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hooked_asr.sae.reading.excerpts import Peaks, all_peaks, find_peaks
from hooked_asr.sae.reading.labels import Association, LabelScorer, Scores, associate
from hooked_asr.sae.reading.purity import Purity, label_sums, purity
from hooked_asr.sae.reading.row_labels import ReadClip, RowLabels, halves, shuffled

_STEPS = 20  # of a histogram


class Collected:
    """The numbers of all features so far; `arrays` gives them by the names of `FeatureReading`."""

    def __init__(
        self,
        clips: Sequence[ReadClip],
        kinds: Sequence[RowLabels],
        top: int,
        reach: int,
        shuffles: int,
        seed: int,
    ) -> None:
        self._clips, self._top, self._reach = clips, top, reach
        self._n_rows = sum(clip.rows for clip in clips)
        self._peaks: list[Peaks] = []
        self._density: list[float] = []
        self._mean: list[float] = []
        self._greatest: list[float] = []
        self._histograms: list[np.ndarray] = []
        rng = np.random.default_rng(seed)
        fitted = halves(clips, rng) if kinds else np.zeros(self._n_rows, bool)
        self._kinds = [_Kind(one, clips, fitted, shuffles, rng) for one in kinds]

    def add(self, rows: Int[np.ndarray, " active"], values: Float[np.ndarray, " active"]) -> None:
        """The next feature, active in these rows."""
        greatest = float(values.max()) if len(values) else 0.0
        self._density.append(len(rows) / max(1, self._n_rows))
        self._mean.append(float(values.mean()) if len(values) else 0.0)
        self._greatest.append(greatest)
        self._histograms.append(np.histogram(values, _STEPS, (0.0, greatest or 1.0))[0])
        self._peaks.append(find_peaks(self._clips, rows, values, self._top, self._reach))
        for kind in self._kinds:
            kind.add(rows, values)

    def arrays(self) -> dict[str, Any]:
        return {
            "density": np.array(self._density, np.float32),
            "mean": np.array(self._mean, np.float32),
            "greatest": np.array(self._greatest, np.float32),
            "histogram": np.array(self._histograms, np.int64),
            "peaks": all_peaks(self._peaks),
            "associations": {one.labels.kind: one.association() for one in self._kinds},
            "purities": {one.labels.kind: one.purity() for one in self._kinds},
        }


class _Kind:
    """One kind of label: scores and sums of the features so far."""

    def __init__(
        self,
        labels: RowLabels,
        clips: Sequence[ReadClip],
        fitted: np.ndarray,
        shuffles: int,
        rng: np.random.Generator,
    ) -> None:
        n = len(labels.names)
        self.labels = labels
        self._scorer = LabelScorer(labels.codes, n, fitted)
        again = [shuffled(labels, clips, rng) for _ in range(shuffles)]
        self._shuffled = [LabelScorer(codes, n, fitted) for codes in again]
        self._scores: list[Scores] = []
        self._by_chance: list[list[Scores]] = []
        self._mass: list[np.ndarray] = []
        self._active: list[np.ndarray] = []

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._scores.append(self._scorer.score(rows, values))
        self._by_chance.append([one.score(rows, values) for one in self._shuffled])
        mass, active = label_sums(self.labels, rows, values)
        self._mass.append(mass)
        self._active.append(active)

    def association(self) -> Association:
        return associate(self.labels, self._scores, self._by_chance)

    def purity(self) -> Purity:
        return purity(self.labels, self._mass, self._active)
