"""How alike a lens's candidates are to the final token, as tensors, tables and a figure."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.lines import lines
from hooked_asr.viz.panels import side_by_side

_FLAGS = ("real", "words")
_IDS = ("top_tokens", "final_tokens")
_NUMBERS = ("per", "cosine")
# Column -> title of its panel.
_CURVES = {"per": "phoneme error rate", "cosine": "cosine of embeddings"}


@dataclass(frozen=True, eq=False)
class CandidateSimilarity:
    """The likeliest tokens of each site and position, each beside the token of the model's end.

    On the CPU; NaN (-1 among ids) where there is only padding.

    - `sites`, `positions`, `real`, `top_tokens`, `final_tokens`: as in the `LogitLens`.
    - `per`: phoneme error rate, the Levenshtein distance between the phonemes of the candidate and
      of the final token for each phoneme of the final token; may pass 1. NaN where either has none.
    - `cosine`: of the embeddings.
    - `words`: whether both are words, or pieces of words; without texts, all that is no padding.
    - `languages`: of each clip, by code; "" where it did not matter.
    - `texts`: of the tokens. `phonemes`: language -> word -> phonemes.
    """

    sites: list[str]
    positions: list[int]
    real: Bool[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "site batch pos top"]
    final_tokens: Int[Tensor, "batch pos"]
    per: Float[Tensor, "site batch pos top"]
    cosine: Float[Tensor, "site batch pos top"]
    words: Bool[Tensor, "site batch pos top"]
    languages: list[str]
    model: str
    texts: dict[int, str] = field(default_factory=dict)
    phonemes: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layer of each site."""
        return [int(site.split(".")[1]) for site in self.sites]

    @property
    def streams(self) -> list[str]:
        """The stream of each site: "resid_post" and its kin."""
        return [site.rpartition(".hook_")[2] for site in self.sites]

    @property
    def is_final(self) -> Bool[Tensor, "site batch pos top"]:
        """Whether the candidate is the final token itself."""
        return (self.top_tokens == self.final_tokens[..., None]) & self.real[..., None]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site, clip, position and candidate but padding.

        `rank` counts candidates from 1, the likeliest; tokens are texts, or ids without a
        tokenizer; phonemes are parted by spaces.
        """
        kept = self.real[..., None].expand(self.top_tokens.shape)
        site, clip, place, rank = kept.nonzero().unbind(1)
        candidates = self.top_tokens[kept].tolist()
        finals = self.final_tokens[clip, place].tolist()
        languages = [self.languages[one] for one in clip.tolist()]
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[site],
                "at": np.array(self.streams, dtype=object)[site],
                "clip": clip.numpy(),
                "language": languages,
                "position": torch.tensor(self.positions)[place].numpy(),
                "rank": rank.numpy() + 1,
                "candidate": [self.texts.get(token, token) for token in candidates],
                "final": [self.texts.get(token, token) for token in finals],
                "is_final": self.is_final[kept].numpy(),
                "words": self.words[kept].numpy(),
                "per": self.per[kept].numpy(),
                "cosine": self.cosine[kept].numpy(),
                "candidate_phonemes": self._spoken(candidates, languages),
                "final_phonemes": self._spoken(finals, languages),
            }
        )

    def by_layer(self, include_final: bool = True) -> pd.DataFrame:
        """One row for each site: means over the pairs of words of all clips, and how many they are.

        `per` rests on `per_pairs`, those in which both have phonemes; `cosine` on `cosine_pairs`.

        `include_final=False` leaves out candidates that are the final token. With them, as in the
        paper, the means tell how much of the candidates is settled too: the deeper a layer, the
        oftener the final token is among them. Without them they tell of the others alone.
        """
        kept = self.words if include_final else self.words & ~self.is_final
        rows = []
        for i, (layer, stream) in enumerate(zip(self.layers, self.streams, strict=True)):
            row: dict[str, Any] = {"layer": layer, "at": stream}
            for name in _NUMBERS:
                values = getattr(self, name)[i][kept[i]]
                known = values[~values.isnan()]
                row[name] = known.double().mean().item() if len(known) else math.nan
                row[f"{name}_pairs"] = len(known)
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> alt.HConcatChart:
        """Mean phoneme error rate and mean cosine by layer, with and without the final token among
        the candidates; see also `save`.

        Raises `ResultError` where there is neither.
        """
        tables = {
            "all candidates": self.by_layer(),
            "without the final token": self.by_layer(include_final=False),
        }
        drawn = {column: self._lines(tables, column) for column in _CURVES}
        panels = [
            lines({"": curves}, x="decoder layer", y=_CURVES[column])
            for column, curves in drawn.items()
            if any(math.isfinite(value) for points in curves.values() for _, value in points)
        ]
        if not panels:
            raise ResultError("nothing to draw: no candidate and final token are both words")
        return side_by_side(
            panels,
            title="How alike the candidates of each layer are to the final token",
            subtitle=f"{Path(self.model).name}; clips: {len(self.languages)}; the likeliest "
            f"{self.top_tokens.shape[-1]} tokens",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table of pairs (.csv), or the curves (.html, .png, .svg,
        .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CandidateSimilarity:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            texts = {int(token): text for token, text in found.pop("texts").items()}
            own = {name: _as_it_was(name, value) for name, value in found.items()}
            return cls(**own, texts=texts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved candidate similarity: {error!r}") from error

    def _lines(
        self, tables: dict[str, pd.DataFrame], column: str
    ) -> dict[str, list[tuple[str, float]]]:
        """Points by line: one for each stream and table."""
        several = len(set(self.streams)) > 1
        found: dict[str, list[tuple[str, float]]] = {}
        for name, table in tables.items():
            for layer, stream, value in table[["layer", "at", column]].itertuples(index=False):
                line = f"{stream}, {name}" if several else name
                found.setdefault(line, []).append((str(layer), float(value)))
        return found

    def _spoken(self, tokens: list[int], languages: list[str]) -> list[str]:
        return [
            " ".join(self.phonemes.get(language, {}).get(self.texts.get(token, "").strip(), []))
            for token, language in zip(tokens, languages, strict=True)
        ]

    def _plain(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }


def _as_it_was(name: str, value: Any) -> Any:
    """A field as it was before it was plain; null was NaN."""
    if name in _NUMBERS:
        return torch.from_numpy(np.array(value, dtype=float)).float()
    return torch.tensor(value) if name in (*_FLAGS, *_IDS) else value
