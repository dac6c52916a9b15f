"""What a logit lens sees over many recordings: every clip's means, and theirs by language."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.files import written_aside
from hooked_asr.lenses.corpus_plot import candidates_figure, corpus_figure, saturation_figure
from hooked_asr.patching.saving import ResultError, save_as

ALL = "all"


@dataclass(frozen=True)
class CorpusClip:
    """A recording that was read: what was forced on it, and how many of its tokens count.

    `language`: that spoken; "" where neither the caller nor the model tells.
    """

    id: str
    audio: str
    text: str
    language: str
    tokens: int
    group: str | None = None


@dataclass(frozen=True, eq=False)
class CorpusLens:
    """Each clip's mean of everything that its logit lens measures, layer by layer.

    - `measures`: `[clip layer]` by name; NaN where the clip has no such number, as with no text.
      "final_prob", "final_rank", "entropy" and "kl" as in a `LogitLens`; "ahead_1_rank",
      "ahead_1_prob", … of the token that comes next, the one after it, …; "per" and "cosine" of
      the candidates as in a `CandidateSimilarity`, "per_others" and "cosine_others" without those
      that are the final token; "per_elsewhere" and "cosine_elsewhere" of these beside the final
      token of another place in the clip, half of its text further on: what chance amounts to.
    - `saturated`: how many of a clip's tokens saturate in each layer, `[clip layer]`, by rule.
    - `force`: what was forced on the clips, see `corpus_lens`; `tuned`: whether by a tuned lens.
    - `failed`: why there is nothing of it, for each clip that was skipped.
    """

    clips: list[CorpusClip]
    layers: list[int]
    measures: dict[str, Float64[Tensor, "clip layer"]]
    saturated: dict[str, Int[Tensor, "clip layer"]]
    top_k: int
    ahead: int
    force: str
    model: str
    tuned: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def to_pandas(
        self, by: str | None = "language", level: float = 0.95, method: str = "bca"
    ) -> pd.DataFrame:
        """One row for each language and layer: means over clips, each clip counting once.

        `clips` have text, of so many `tokens`; `empty` have none, and count in no mean. Each mean
        stands before both ends of its interval, `_low` and `_high`, resampled over clips, or over
        the groups of a manifest; `level` and `method` as `bootstrap_means` takes them. By None,
        all languages are one, "all".

        Raises `ResultError` for another `by`.
        """
        return pd.concat(
            [self._table(language, rows, level, method) for language, rows in self._groups(by)],
            ignore_index=True,
        )

    def saturation(
        self, by: str | None = "language", level: float = 0.95, method: str = "bca"
    ) -> pd.DataFrame:
        """One row for each language and rule: the mean of the clips' mean saturation layers.

        See `saturation_layers`; columns and arguments as in `to_pandas`.
        """
        rows = [
            {
                "language": language,
                "rule": rule,
                **self._counted(clips),
                **self._mean_saturation(rule, clips, level, method),
            }
            for language, clips in self._groups(by)
            for rule in self.saturated
        ]
        return pd.DataFrame(rows)

    def saturation_counts(self, by: str | None = "language") -> pd.DataFrame:
        """One row for each language, rule and layer: how many tokens saturate there, of all.

        `share` is NaN where there are none.
        """
        tables = []
        for language, clips in self._groups(by):
            for rule, counts in self.saturated.items():
                tokens = counts[clips].sum(0).numpy()
                share = tokens / max(tokens.sum(), 1) if tokens.sum() else np.nan
                columns = {"layer": self.layers, "tokens": tokens, "share": share}
                tables.append(pd.DataFrame({"language": language, "rule": rule, **columns}))
        return pd.concat(tables, ignore_index=True)

    def by_clip(self) -> pd.DataFrame:
        """One row for each clip and layer: every number, and the clip's fields before them."""
        n_clips, n_layers = len(self.clips), len(self.layers)
        fields = pd.DataFrame([asdict(clip) for clip in self.clips])
        table = fields.loc[fields.index.repeat(n_layers)].reset_index(drop=True)
        table["layer"] = self.layers * n_clips
        numbers = {name: one.flatten().numpy() for name, one in self.measures.items()}
        counts = {
            f"saturated_{rule}": one.flatten().numpy() for rule, one in self.saturated.items()
        }
        return table.assign(**numbers, **counts)

    def plot(
        self, rule: str = "stable", by: str | None = "language", level: float = 0.95
    ) -> alt.ConcatChart:
        """Curves over layers, of a colour for each language, in bands of their intervals.

        The probability of the final token, with the mean saturation layer by `rule` marked; phoneme
        error rate and cosine of the candidates; ranks of the tokens that follow. Panels without
        numbers are left out.

        Raises `ResultError` for another rule, or where no clip has text.
        """
        self._check_plot(rule)
        table = self.to_pandas(by, level)
        marks = self.saturation(by, level).query("rule == @rule")
        mean = f"upright: mean saturation layer ({rule})"
        return corpus_figure(table, marks, self._title, self._subtitle(level, mean))

    def plot_candidates(self, level: float = 0.95) -> alt.ConcatChart:
        """Phoneme error rate and cosine of the candidates by layer, over all languages.

        Of all candidates; of those that are not the final token; and of these beside the final
        token of another place. Candidates are like what is said there, and not only like words of
        the clip, as far as the second differs from the third.

        Raises `ResultError` where no clip has text, or nothing was compared.
        """
        self._check_plot()
        table = self.to_pandas(None, level)
        if "per" not in table:
            raise ResultError("there is nothing to plot: the lens was taken with similarity=False")
        return candidates_figure(table, self._title, self._subtitle(level))

    def plot_saturation(self, rule: str = "stable", by: str | None = "language") -> alt.Chart:
        """Which share of the tokens saturates in each layer, bars of a colour for each language.

        Raises `ResultError` for another rule, or where no clip has text.
        """
        self._check_plot(rule)
        counts = self.saturation_counts(by).query("rule == @rule")
        title = f"Where tokens are settled ({rule})"
        return saturation_figure(counts, title, f"{self._title}; {Path(self.model).name}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the curves (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    def save_clips(self, path: str | os.PathLike[str]) -> None:
        """Write every clip's numbers as a table (.csv)."""
        with written_aside(path) as aside:
            self.by_clip().to_csv(aside, index=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CorpusLens:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            clips = [CorpusClip(**one) for one in found.pop("clips")]
            shape = len(clips), len(found["layers"])
            measures = {name: numbers(one, shape) for name, one in found.pop("measures").items()}
            counts = {rule: torch.tensor(one) for rule, one in found.pop("saturated").items()}
            return cls(clips=clips, measures=measures, saturated=counts, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved lens of a corpus: {error!r}") from error

    # --- Groups of clips, and means over them -----------------------------------------------------

    def _groups(self, by: str | None) -> list[tuple[str, list[int]]]:
        """Each language with its clips."""
        if by is None:
            return [(ALL, list(range(len(self.clips))))]
        if by != "language":
            raise ResultError(f"clips are grouped by 'language', or None; got {by!r}")
        languages = sorted({clip.language for clip in self.clips})
        return [
            (one, [i for i, clip in enumerate(self.clips) if clip.language == one])
            for one in languages
        ]

    def _counted(self, clips: Sequence[int]) -> dict[str, int]:
        tokens = [self.clips[i].tokens for i in clips]
        return {
            "clips": sum(n > 0 for n in tokens),
            "tokens": sum(tokens),
            "empty": sum(n == 0 for n in tokens),
        }

    def _table(
        self, language: str, clips: Sequence[int], level: float, method: str
    ) -> pd.DataFrame:
        values = torch.stack([one[clips] for one in self.measures.values()], 1).numpy()
        groups = self._speakers(clips)
        about = bootstrap_means(values, groups, level=level, method=method)
        columns: dict[str, Any] = {"language": language, "layer": self.layers}
        columns |= self._counted(clips)
        for i, name in enumerate(self.measures):
            columns[name] = about.mean[i]
            columns[f"{name}_low"], columns[f"{name}_high"] = about.low[i], about.high[i]
        return pd.DataFrame(columns)

    def _mean_saturation(
        self, rule: str, clips: Sequence[int], level: float, method: str
    ) -> dict[str, float]:
        counts = self.saturated[rule][clips].double()
        means = (counts @ torch.tensor(self.layers).double()) / counts.sum(-1)
        values = means.numpy()[:, None]
        about = bootstrap_means(values, self._speakers(clips), level=level, method=method)
        return {
            name: float(getattr(about, key)[0])
            for name, key in (("layer", "mean"), ("layer_low", "low"), ("layer_high", "high"))
        }

    def _speakers(self, clips: Sequence[int]) -> list[Hashable] | None:
        """What is resampled together: clips of one group, and every clip without one."""
        chosen = [self.clips[i] for i in clips]
        if all(clip.group is None for clip in chosen):
            return None
        return [(clip.group, "" if clip.group is not None else clip.id) for clip in chosen]

    # --- Texts and files --------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        forced = "what it hears" if self.force == "heard" else "the clips' texts"
        lens = "Tuned lens" if self.tuned else "Logit lens"
        return f"{lens} over {len(self.clips)} clips, forced with {forced}"

    def _subtitle(self, level: float, *more: str) -> str:
        tokens = sum(clip.tokens for clip in self.clips)
        bands = f"bands: {level:.0%} intervals over clips"
        parts = (Path(self.model).name, f"{tokens} tokens", bands, *more)
        return "; ".join((*parts, f"top {self.top_k} candidates"))

    def _check_plot(self, rule: str | None = None) -> None:
        if rule is not None and rule not in self.saturated:
            raise ResultError(f"a layer saturates by {' or '.join(self.saturated)}; got {rule!r}")
        if not any(clip.tokens for clip in self.clips):
            raise ResultError("there is nothing to plot: no clip has text")

    def _plain(self) -> dict[str, Any]:
        tensors = {
            "measures": {name: one.tolist() for name, one in self.measures.items()},
            "saturated": {rule: one.tolist() for rule, one in self.saturated.items()},
        }
        return vars(self) | {"clips": [asdict(clip) for clip in self.clips], **tensors}


def numbers(values: Any, shape: tuple[int, int]) -> Float64[Tensor, "clip layer"]:
    """Null was NaN."""
    return torch.from_numpy(np.array(values, dtype=float).reshape(shape))
