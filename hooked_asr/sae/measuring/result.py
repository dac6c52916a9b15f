"""The measures of a sparse autoencoder: on the whole, clip by clip, and feature by feature."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float64

from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.sae.measuring.loss import ClipLosses
from hooked_asr.sae.measuring.plot import densities_figure
from hooked_asr.sae.measuring.ratios import Estimate, ratio

# What each measure is: sums over clips, one over the other; "-" between two is their difference.
_RATIOS = {
    "explained_variance": ("spread - error", "spread"),
    "l0": ("active", "rows"),
    "loss": ("loss", "tokens"),
    "loss_spliced": ("loss_spliced", "tokens"),
    "loss_mean": ("loss_mean", "tokens"),
    "loss_zero": ("loss_zero", "tokens"),
    "loss_recovered": ("loss_mean - loss_spliced", "loss_mean - loss"),
    "loss_recovered_zero": ("loss_zero - loss_spliced", "loss_zero - loss"),
    "kl": ("kl", "tokens"),
    "wer": ("errors", "words"),
    "wer_spliced": ("errors_spliced", "words"),
    "wer_own": ("changed", "own_words"),
}


@dataclass(frozen=True)
class ClipMeasures:
    """Of one clip, sums over its real positions (`rows`) and all dimensions.

    `error`: of squares of what is not reconstructed; `spread`: of squares about the mean of all
    clips; `active`: of active features. `losses`: None where they were not asked for.
    """

    id: str
    group: str | None
    rows: int
    error: float
    spread: float
    active: float
    losses: ClipLosses | None


@dataclass(frozen=True, eq=False)
class SAEMeasures:
    """What `measure_sae` found.

    - `rows_with`: at how many positions no feature is active, at how many one, and so on.
    - `density`: of each feature, the share of positions where it is active; `greatest`: how active
      it is at most.
    """

    site: str
    model: str
    architecture: str
    clips: list[ClipMeasures]
    rows_with: list[int]
    density: list[float]
    greatest: list[float]

    def __repr__(self) -> str:
        return (
            f"<measures of {self.n_features} features at {self.site} over {len(self.clips)} clips: "
            f"explained variance {self.explained_variance:.3f}, L0 {self.l0:.1f}>"
        )

    @property
    def n_features(self) -> int:
        return len(self.density)

    @property
    def explained_variance(self) -> float:
        """1 less the squared error over the sum of squares about each dimension's mean."""
        return self.estimate("explained_variance").value

    @property
    def l0(self) -> float:
        """How many features are active at a position, on average."""
        return self.estimate("l0").value

    @property
    def dead(self) -> list[int]:
        """The features that are never active."""
        return [i for i, one in enumerate(self.density) if one == 0]

    @property
    def loss_recovered(self) -> float:
        """1 where the reconstruction does as well as the activation, 0 where as its mean."""
        return self.estimate("loss_recovered").value

    @property
    def kl(self) -> float:
        """From the model's own next-token distributions, nats a token."""
        return self.estimate("kl").value

    def estimate(self, measure: str, level: float = 0.95, seed: int = 0) -> Estimate:
        """One of the measures of `to_pandas`, with its interval over clips, or their groups.

        Raises `ResultError` for a measure that there is not.
        """
        if measure == "dead":
            return Estimate(len(self.dead) / self.n_features, np.nan, np.nan)
        if measure not in _RATIOS:
            raise ResultError(f"measures are dead, {', '.join(_RATIOS)}; got {measure!r}")
        above, below = map(self._sums, _RATIOS[measure])
        return ratio(above, below, self._groups, level=level, seed=seed)

    def to_pandas(self, level: float = 0.95) -> pd.DataFrame:
        """One row for each measure: its value, and both ends of its interval.

        - `explained_variance`, `l0`: see there; `dead`: the share of features never active.
        - `loss`: cross-entropy of the transcripts (nats a token) with the model as it is, with the
          reconstruction in place (`_spliced`), with the site's mean, or zeros.
        - `loss_recovered`: (mean - spliced) / (mean - own), from 0 for no better than the mean to 1
          for as good as the activation itself; `_zero`: with zeros in the mean's place.
        - `kl`: nats a token. `wer`: of the model's own transcripts against what is said;
          `wer_spliced` with the reconstruction; `wer_own` of these against the model's own.

        NaN for what was not measured.
        """
        names = ["explained_variance", "l0", "dead", *list(_RATIOS)[2:]]
        return pd.DataFrame(
            [{"measure": name, **asdict(self.estimate(name, level))} for name in names]
        )

    def by_clip(self) -> pd.DataFrame:
        """One row for each clip: every sum, and its transcripts."""
        return pd.DataFrame([_flat(clip) for clip in self.clips])

    def features(self) -> pd.DataFrame:
        """One row for each feature: `feature`, `density`, `greatest`."""
        return pd.DataFrame(
            {
                "feature": range(self.n_features),
                "density": self.density,
                "greatest": self.greatest,
            }
        )

    def plot(self) -> alt.HConcatChart:
        """How many features are how dense, and how many positions have how many active."""
        told = f"explained variance {self.explained_variance:.3f}; L0 {self.l0:.1f}"
        return densities_figure(
            self.density,
            self.rows_with,
            title=f"{self.n_features} features at {self.site}",
            subtitle=f"{Path(self.model).name}, {len(self.clips)} clips; {told}; "
            f"{len(self.dead)} features are never active",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SAEMeasures:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{**found, "clips": [_read(one) for one in found["clips"]]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no measures of an autoencoder: {error!r}") from error

    # --- Parts ------------------------------------------------------------------------------------

    def _sums(self, of: str) -> Float64[np.ndarray, " clip"]:
        first, *others = of.split(" - ")
        found = self._column(first)
        for other in others:
            found = found - self._column(other)
        return found

    def _column(self, name: str) -> Float64[np.ndarray, " clip"]:
        values = [_flat(clip).get(name) for clip in self.clips]
        return np.array([np.nan if one is None else one for one in values], dtype=np.float64)

    @property
    def _groups(self) -> list[Hashable] | None:
        """What is resampled together: clips of one group, and every clip without one."""
        if all(clip.group is None for clip in self.clips):
            return None
        return [(clip.group, "" if clip.group is not None else clip.id) for clip in self.clips]


def _flat(clip: ClipMeasures) -> dict[str, Any]:
    own = asdict(clip)
    return own | (own.pop("losses") or {})


def _read(fields: dict[str, Any]) -> ClipMeasures:
    losses = fields["losses"]
    return ClipMeasures(**{**fields, "losses": None if losses is None else ClipLosses(**losses)})
