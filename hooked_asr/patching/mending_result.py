"""Which word is written with each site moved towards a reference, and how far."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from hooked_asr.patching.mending_reach import reach
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.patching.words import NEIGHBOUR, OTHER, SAID, VERDICTS, HeardWord
from hooked_asr.speech import normaliser
from hooked_asr.viz.curves import curves
from hooked_asr.viz.heatmap import heatmap
from hooked_asr.viz.panels import side_by_side

_LEAST = 0.25  # a share that a heatmap's colours reach up to: a clip or two are to look like few

Which = Bool[np.ndarray, "clip site alpha"]


@dataclass(frozen=True, eq=False)
class MendingResult:
    """What is heard in each recording with each site moved towards a reference by each alpha.

    `changed`: for each recording the transcripts that differ from its own, by their place in a
    row-major array over sites and alphas.
    """

    clips: list[HeardWord]
    sites: list[str]
    alphas: list[float]
    changed: list[dict[str, str]]
    reference: str
    seed: int
    model: str

    def text(self, clip: int, site: int, alpha: int) -> str:
        """What is heard in a recording with a site moved; each is told by its place."""
        place = site * len(self.alphas) + alpha
        return self.changed[clip].get(str(place), self.clips[clip].heard)

    def wrote(self, verdict: str = SAID) -> Which:
        """Where that word is written: "said", "neighbour", or "other" for neither or both.

        Raises `ResultError` for another verdict.
        """
        if verdict not in VERDICTS:
            raise ResultError(f"verdicts are {', '.join(VERDICTS)}; got {verdict!r}")
        return np.array(self._verdicts == verdict)

    @cached_property
    def whole(self) -> Which:
        """Where the transcript is all that was said, no word more or less."""
        return self._each(_is_whole, bool)

    @cached_property
    def _verdicts(self) -> np.ndarray:
        return self._each(HeardWord.verdict_on, "<U9")

    def _each(self, measure: Any, kind: Any) -> Any:
        """A function of each recording and transcript, `[clip site alpha]`."""
        filled = np.empty((len(self.clips), len(self.sites) * len(self.alphas)), kind)
        for row, clip, changed in zip(filled, self.clips, self.changed, strict=True):
            row[:] = measure(clip, clip.heard)
            known = {text: measure(clip, text) for text in set(changed.values())}
            for place, text in changed.items():
                row[int(place)] = known[text]
        return filled.reshape(len(self.clips), len(self.sites), len(self.alphas))

    def stack(self, name: str) -> Bool[np.ndarray, " site"]:
        """Which sites are of that stack."""
        return np.array([site.startswith(f"{name}.") for site in self.sites])

    # --- Tables -----------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site and alpha: how many recordings have which word, most "said" first.

        `whole` counts transcripts that are all that was said.
        """
        index = pd.MultiIndex.from_product([self.sites, self.alphas], names=["site", "alpha"])
        table = index.to_frame(index=False)
        for verdict in VERDICTS:
            table[verdict] = self.wrote(verdict).sum(0).ravel()
        table["whole"] = self.whole.sum(0).ravel()
        table["of"] = len(self.clips)
        return table.sort_values([SAID, "whole"], ascending=False, kind="stable", ignore_index=True)

    def by_clip(self, verdict: str | None = None) -> pd.DataFrame:
        """One row for each transcript that differs (or has that `verdict`), with what was said."""
        shape = len(self.sites), len(self.alphas)
        rows = []
        for i, (clip, changed) in enumerate(zip(self.clips, self.changed, strict=True)):
            for place, text in changed.items():
                site, alpha = np.unravel_index(int(place), shape)
                row = {"id": clip.id, "site": self.sites[site], "alpha": self.alphas[alpha]}
                row |= {"said": clip.text, "heard": clip.heard, "then": text}
                row |= {"verdict": str(self._verdicts[i, site, alpha])}
                rows.append(row | {"whole": bool(self.whole[i, site, alpha])})
        names = ["id", "site", "alpha", "said", "heard", "then", "verdict", "whole"]
        table = pd.DataFrame(rows, columns=names)
        return table if verdict is None else table[table.verdict == verdict].reset_index(drop=True)

    def reach(self, verdict: str = SAID, most: float = 1.0, whole: bool = False) -> pd.DataFrame:
        """How many recordings come to have that word, by any of many sites or by the best one.

        - `most`: the largest alpha that counts. `whole`: count only transcripts that are all that
          was said.
        - Rows: any site of the encoder, any of the decoder, any at all, the best single site at a
          single alpha, and the best chosen without the recordings of the same two words that it is
          then tried on, as often as there are such. Any of many sites has many chances, and so has
          the best one of the same recordings; the last has one.
        - Columns: `n` of `of`, the `share` with its 95 % interval (`low`, `high`), `tries`: how
          many sites and alphas there are; `site`: the best, and its alpha.

        Raises `ResultError` where no alpha is that small.
        """
        counted = self.wrote(verdict) & (self.whole if whole else True)
        kept = [i for i, alpha in enumerate(self.alphas) if alpha <= most]
        if not kept:
            raise ResultError(f"alphas are {self.alphas}; none is at most {most}")
        pairs = [frozenset((clip.word.lower(), clip.neighbour.lower())) for clip in self.clips]
        stacks = {name: self.stack(name) for name in ("encoder", "decoder")}
        names = [f"{site} at {self.alphas[i]:g}" for site in self.sites for i in kept]
        return reach(counted[:, :, kept], stacks, pairs, names)

    # --- Figures ----------------------------------------------------------------------------------

    def plot(self, verdict: str = SAID) -> alt.HConcatChart:
        """The share of recordings with that word, a row for each site, a column for each alpha."""
        share = torch.from_numpy(self.wrote(verdict).mean(0))
        top = max(float(share.max()), _LEAST)
        panels = [
            heatmap(
                share[torch.from_numpy(self.stack(name))],
                {
                    "site": [site for site in self.sites if site.startswith(name)],
                    "alpha": [f"{alpha:g}" for alpha in self.alphas],
                },
                label="share",
                title=name,
                centred=False,
                bounds=(0.0, top),
            )
            for name in ("encoder", "decoder")
            if self.stack(name).any()
        ]
        return side_by_side(panels, title=self._title(f"share that has {_NAMES[verdict]}"))

    def plot_verdicts(self) -> alt.HConcatChart:
        """How often each word is written, by alpha: the mean over the sites of each stack."""
        panels = []
        for name in ("encoder", "decoder"):
            of = self.stack(name)
            rows: list[dict[str, str | int | float]] = [
                {"alpha": alpha, "share": float(self.wrote(one)[:, of, i].mean()), "written": label}
                for one, label in _NAMES.items()
                for i, alpha in enumerate(self.alphas)
                if of.any()
            ]
            if rows:
                bounds = (0.0, 1.0)
                drawn = curves(
                    rows, x="alpha", y="share", colour="written", bounds=bounds, title=name
                )
                panels.append(drawn)
        return side_by_side(panels, title=self._title("what is written, mean over sites"))

    def _title(self, what: str) -> str:
        return f"towards {Path(self.reference).stem}: {what}, of {len(self.clips)} clips"

    # --- Files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the heatmap (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MendingResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            clips = [HeardWord(**one) for one in fields["clips"]]
            return cls(**{**fields, "clips": clips})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved mending result: {error!r}") from error


_NAMES = {SAID: "the word said", NEIGHBOUR: "the neighbour", OTHER: "neither"}


def _is_whole(clip: HeardWord, text: str) -> bool:
    bare = normaliser(clip.language)
    return bare(text).split() == bare(clip.text).split()
