"""Features that tell one class of clips from the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.manifests import Clip, Clips, read_clips
from hooked_asr.patching.saving import save_as
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.steering.pick_clip import Activity, activity
from hooked_asr.viz.bars import bars

RANKED_BY = ("difference", "standardised", "auc")


@dataclass(frozen=True, eq=False)
class FeaturePick:
    """All features and how well each tells the class, and the `features` that do so best.

    - `table`: a row for each feature, see `telling_apart`; `greatest`: the most that each was
      active in any of the clips, a unit for steering.
    - `label`, `towards`: the class; `by`: what features are ranked by.
    """

    table: pd.DataFrame
    features: list[int]
    greatest: Float[Tensor, " feature"]
    label: str
    towards: str
    by: str
    site: str

    @property
    def values(self) -> dict[int, float]:
        """Each feature picked, and its mean activation in the class: what to clamp it to."""
        means = self.table["towards"].to_numpy()
        return {one: float(means[one]) for one in self.features}

    def to_pandas(self) -> pd.DataFrame:
        """A row for each feature picked, the best first."""
        return self.table.loc[self.features].reset_index(drop=True)

    def plot(self) -> alt.LayerChart:
        """A bar for each feature picked."""
        drawn = [
            (f"feature {int(row.feature)}", float(getattr(row, self.by)), np.nan, np.nan)
            for row in self.to_pandas().itertuples()
        ]
        title = f"{self.label} {self.towards}, against the rest"
        return bars(drawn, label=self.by, title=title, subtitle=self.site)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the picked (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    def _plain(self) -> dict[str, Any]:
        about = {"label": self.label, "towards": self.towards, "by": self.by, "site": self.site}
        return about | {"features": self.features, "table": self.table.to_dict("records")}


def pick_features(
    sae: SparseAutoencoder,
    model: Any,
    clips: Clips,
    label: str,
    towards: Any,
    *,
    n: int = 10,
    by: str = "difference",
    least_auc: float = 0.5,
    positions: Sequence[int] | None = None,
    progress: bool = True,
    **prompt: Any,
) -> FeaturePick:
    """Rank features by how much more active they are in one class of clips than in the rest.

        pick = pick_features(sae, model, "clips.csv", "language", "de", positions=[0])
        steer_sweep(sae, model, "english.csv", pick.values, [0, 1, 2], together=True, positions=[0])

    - `label`: "language", "group", or a column of the manifest; `towards`: the class, a value of it
      or several. Clips that do not have the label are left out.
    - `by`: "difference" of mean activations, "standardised" by their deviation over all clips, or
      "auc". Each clip counts once, with its mean over its positions. `least_auc`: features that
      tell clips apart less well than this are passed over.
    - `positions`: of a decoder's site, those that count, if not all of prompt and text (the
      clip's text, or what the model hears in it): behind 0 a Whisper tells the language, behind
      the prompt's last whether it says anything. In the encoder, all that hear any of the clip
      count if not said.
    - `prompt`: how the model is asked (`language`, …), as its `settled` takes it.

    Raises `SAEError` for a class that no clip, or every one, is of, or options that do not fit;
    `ManifestError` as `read_clips`.
    """
    if by not in RANKED_BY:
        raise SAEError(f"features are ranked by {', '.join(RANKED_BY)}; got {by!r}")
    if n < 1:
        raise SAEError(f"at least one feature is picked; got n={n}")
    spec = sae.spec(model)
    wanted = {str(one) for one in towards} if _several(towards) else {str(towards)}
    known = [(clip, value) for clip in read_clips(clips) if (value := _value(clip, label))]
    mine = np.array([value in wanted for _, value in known], dtype=bool)
    _check_classes(mine, label, wanted, {value for _, value in known})
    bar = tqdm(known, desc="features", unit="clip", disable=not progress)
    found: list[Activity] = [activity(sae, model, spec, clip, positions, prompt) for clip, _ in bar]
    means = torch.stack([one.mean for one in found]).double().numpy()
    table = telling_apart(means, mine)
    telling = table[table["auc"] >= least_auc].sort_values(by, ascending=False, kind="stable")
    return FeaturePick(
        table=table,
        features=telling["feature"].head(n).tolist(),
        greatest=torch.stack([one.greatest for one in found]).amax(0),
        label=label,
        towards=", ".join(sorted(wanted)),
        by=by,
        site=spec.name,
    )


def telling_apart(
    means: Float[np.ndarray, "clip feature"], mine: Bool[np.ndarray, " clip"]
) -> pd.DataFrame:
    """How each feature tells the clips that are `mine` from the others: a row for each.

    `towards`, `rest`: means over clips; `difference`: of these; `standardised`: by the deviation
    over all clips, 0 where there is none; `auc`: how often one of `mine` is more active than one of
    the others, ties counting half.

    >>> means = np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0]])
    >>> table = telling_apart(means, np.array([False, False, True]))
    >>> table["difference"].tolist(), table["auc"].tolist()
    ([3.0, -0.5], [1.0, 0.25])
    """
    towards, rest = means[mine].mean(0), means[~mine].mean(0)
    deviation = means.std(0)
    difference = towards - rest
    ranks = pd.DataFrame(means).rank().to_numpy()
    n_mine, n_rest = int(mine.sum()), int((~mine).sum())
    above = ranks[mine].sum(0) - n_mine * (n_mine + 1) / 2
    still = deviation == 0
    return pd.DataFrame(
        {
            "feature": np.arange(means.shape[1]),
            "towards": towards,
            "rest": rest,
            "difference": difference,
            "standardised": np.where(still, 0.0, difference / np.where(still, 1.0, deviation)),
            "auc": above / (n_mine * n_rest),
        }
    )


# --- Parts ----------------------------------------------------------------------------------------


def _several(towards: Any) -> bool:
    return isinstance(towards, list | tuple | set | frozenset)


def _value(clip: Clip, label: str) -> str:
    own = getattr(clip, label) if label in ("language", "group") else clip.labels.get(label)
    return "" if own is None else str(own)


def _check_classes(
    mine: Bool[np.ndarray, " clip"], label: str, wanted: set[str], there: set[str]
) -> None:
    if not len(mine):
        raise SAEError(f"no clip has a {label!r}: give the manifest a column of them")
    if not mine.any() or mine.all():
        how_many = "every clip is" if mine.any() else "no clip is"
        raise SAEError(
            f"{how_many} {label} {', '.join(sorted(wanted))}: the clips have "
            f"{', '.join(sorted(there))}, and a class is told from others"
        )
