"""Which sites end which loops, with what is said instead."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.patching.shares import share_interval
from hooked_asr.viz.heatmap import heatmap
from hooked_asr.viz.panels import side_by_side

_NAMED = 5  # clips that a figure has room to name


@dataclass(frozen=True)
class LoopingClip:
    """A recording on which the model loops: it says `unit` `count` times in a row."""

    name: str
    text: str
    language: str
    unit: str
    count: int
    said: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What is heard in one clip with one site changed.

    - `mended`: it loops no more, and is not empty; `kept_language`: it is in the same language.
    - `wer`: word error rate, where it is known what was said.
    """

    text: str
    language: str
    mended: bool
    kept_language: bool
    wer: float | None = None


@dataclass(frozen=True)
class TriedSites:
    """One grid of sites, row-major over `axes` (name -> labels), and the outcomes of each.

    `outcomes`: for each site, one for each clip.
    """

    name: str
    axes: dict[str, list[str | int]]
    sites: list[str]
    outcomes: list[list[Outcome]]

    @property
    def mended(self) -> Int[Tensor, "layer _"]:
        """How many clips each site mends, over the axes."""
        counts = [sum(one.mended for one in of_site) for of_site in self.outcomes]
        return torch.tensor(counts).reshape(*map(len, self.axes.values()))


@dataclass(frozen=True, eq=False)
class RepetitionResult:
    """The clips that loop, and what became of them at each site.

    `left_out`: what is heard in those that do not loop, by name. `reference`: what was patched in.
    """

    clips: list[LoopingClip]
    tried: list[TriedSites]
    operation: str
    reference: str | None
    min_repeats: int
    model: str
    left_out: dict[str, str] = field(default_factory=dict)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site, those that mend most clips first.

        `kept_language` counts mended clips; `wer` is their mean word error rate, where it is known
        what was said; `example` is what is said instead in the first of them.
        """
        rows = [
            {
                "sites": tried.name,
                "site": site,
                "mended": len(mended),
                "of": len(self.clips),
                "kept_language": sum(one.kept_language for one in mended),
                "wer": _mean([one.wer for one in mended]),
                "example": mended[0].text if mended else "",
            }
            for tried, site, outcomes in self._each()
            for mended in [[one for one in outcomes if one.mended]]
        ]
        table = pd.DataFrame(rows).sort_values(
            ["mended", "kept_language", "wer"], ascending=[False, False, True], kind="stable"
        )
        known = any(clip.said for clip in self.clips)
        return (table if known else table.drop(columns="wer")).reset_index(drop=True)

    def by_clip(self) -> pd.DataFrame:
        """One row for each site and clip: what is said there, and whether the clip is mended."""
        return pd.DataFrame(
            [
                {"site": site, "clip": clip.name, **asdict(outcome)}
                for _, site, outcomes in self._each()
                for clip, outcome in zip(self.clips, outcomes, strict=True)
            ]
        )

    def top(self, k: int = 10) -> pd.DataFrame:
        """The `k` sites that mend most clips."""
        return self.to_pandas().head(k)

    def cover(self, sites: str = "*", k: int = 5) -> pd.DataFrame:
        """How many clips a few sites mend between them: the best, then what each further one adds.

        Greedy: every next site is the one that mends most of the clips that none before it mends.
        These are clips mended by one site *or* another, each tried alone.

        - `sites`: a glob of those that may be chosen, as "decoder.*.cross_attn".
        - `k`: how many at most; those that add nothing are left out.

        Columns: `site`, `mends` (alone), `adds`, `together`, `share` (of all clips) with the ends
        of its 95 % interval (`low`, `high`).

        Raises `ResultError` where no site is called so.
        """
        mends = {
            site: np.array([one.mended for one in outcomes])
            for _, site, outcomes in self._each()
            if fnmatchcase(site, sites)
        }
        if not mends:
            raise ResultError(f"no site that was tried is called {sites!r}: see to_pandas()")
        covered = np.zeros(len(self.clips), dtype=bool)
        rows: list[dict[str, Any]] = []
        for _ in range(k):
            best = max(mends, key=lambda site: int((mends[site] & ~covered).sum()))
            adds = int((mends[best] & ~covered).sum())
            if not adds and rows:
                break
            covered |= mends[best]
            low, high = share_interval(int(covered.sum()), len(covered))
            rows.append(
                {
                    "site": best,
                    "mends": int(mends[best].sum()),
                    "adds": adds,
                    "together": int(covered.sum()),
                    "share": float(covered.mean()),
                    "low": low,
                    "high": high,
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> alt.HConcatChart:
        """A heatmap of clips mended for each kind of sites, beside each other; see also `save`."""
        panels = [
            heatmap(
                tried.mended.float(),
                tried.axes,
                label="clips mended",
                title=tried.name,
                centred=False,
                bounds=(0.0, float(len(self.clips))),
            )
            for tried in self.tried
        ]
        patched = "" if self.reference is None else f" by {Path(self.reference).stem}"
        return side_by_side(
            panels,
            title=f"{self.operation}{patched}: loops ended, of {len(self.clips)}",
            subtitle=f"{Path(self.model).name}; {self._clip_names}",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the heatmaps (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RepetitionResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            clips = [LoopingClip(**one) for one in fields.pop("clips")]
            tried = [_tried(one) for one in fields.pop("tried")]
            return cls(clips=clips, tried=tried, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved repetition result: {error!r}") from error

    @property
    def _clip_names(self) -> str:
        names = [clip.name for clip in self.clips]
        more = len(names) - _NAMED
        return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

    def _each(self) -> Iterator[tuple[TriedSites, str, list[Outcome]]]:
        for tried in self.tried:
            for site, outcomes in zip(tried.sites, tried.outcomes, strict=True):
                yield tried, site, outcomes


def _mean(numbers: list[float | None]) -> float:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else float("nan")


def _tried(fields: dict[str, Any]) -> TriedSites:
    outcomes = [[Outcome(**one) for one in of_site] for of_site in fields.pop("outcomes")]
    return TriedSites(outcomes=outcomes, **fields)
