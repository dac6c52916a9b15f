"""What a logit lens sees, as tensors, a table and a figure."""

from __future__ import annotations

import json
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
from hooked_asr.viz.text_heatmap import text_heatmap

_SHOWN = ("final_prob", "top_prob", "entropy", "kl", "final_rank")
_IDS = ("tokens", "top_tokens", "final_tokens")


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The distributions that a decoder's streams amount to, beside the one that it ends with.

    A `site` is a stream of a layer. A position is where a distribution stands: it is of the token
    at the position behind. All on the CPU; NaN (-1 among ids) where there is only padding.

    - `sites`: hook names, in the order of the forward. `positions`: those that were read.
    - `tokens`: of the run. `real`: where the positions read are no padding.
    - `top_tokens`, `top_probs`: the likeliest tokens, the likeliest first.
    - `entropy`: nats. `kl`: KL(final ‖ site) in nats, from the model's own distribution to the one
      at the site.
    - `final_tokens`: the likeliest token by the model's own logits; `final_rank`, `final_prob`: how
      many tokens are likelier than that one at a site (0: it is the top), and its probability.
    - `ahead_rank`, `ahead_prob`: the same of the tokens that really follow; NaN where none does.
    - `name`: of the lens: a tuned one reads the same.
    - `texts`: of every token above, where the model has a tokenizer.
    - `logits`: only where they were asked for, in the model's own float type.
    """

    sites: list[str]
    positions: list[int]
    tokens: Int[Tensor, "batch _"]
    real: Bool[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "site batch pos top"]
    top_probs: Float[Tensor, "site batch pos top"]
    entropy: Float[Tensor, "site batch pos"]
    kl: Float[Tensor, "site batch pos"]
    final_tokens: Int[Tensor, "batch pos"]
    final_rank: Float[Tensor, "site batch pos"]
    final_prob: Float[Tensor, "site batch pos"]
    ahead_rank: Float[Tensor, "site batch pos ahead"]
    ahead_prob: Float[Tensor, "site batch pos ahead"]
    model: str
    name: str
    texts: dict[int, str] = field(default_factory=dict)
    logits: Float[Tensor, "site batch pos d_vocab"] | None = None

    @property
    def layers(self) -> list[int]:
        """The layer of each site."""
        return [int(site.split(".")[1]) for site in self.sites]

    @property
    def streams(self) -> list[str]:
        """The stream of each site: "resid_post" and its kin."""
        return [site.rpartition(".hook_")[2] for site in self.sites]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site, clip and position but padding; tokens as texts, or as ids.

        `top_1`, `top_1_prob`, … are the likeliest tokens; `ahead_1`, `ahead_1_rank`, … the tokens
        that follow.
        """
        kept = self.real.expand(len(self.sites), -1, -1)
        site, clip, place = kept.nonzero().unbind(1)
        position = torch.tensor(self.positions)[place]
        columns: dict[str, Any] = {
            "layer": np.array(self.layers)[site],
            "at": np.array(self.streams, dtype=object)[site],
            "clip": clip,
            "position": position,
            "token": self._named(self.tokens[clip, position]),
        }
        for i in range(self.top_tokens.shape[-1]):
            columns[f"top_{i + 1}"] = self._named(self.top_tokens[..., i][kept])
            columns[f"top_{i + 1}_prob"] = self.top_probs[..., i][kept]
        columns |= {"entropy": self.entropy[kept], "kl": self.kl[kept]}
        columns["final"] = self._named(self.final_tokens[clip, place])
        columns |= {"final_rank": self.final_rank[kept], "final_prob": self.final_prob[kept]}
        for i in range(self.ahead_rank.shape[-1]):
            rank = self.ahead_rank[..., i][kept]
            columns[f"ahead_{i + 1}"] = self._following(clip, position + i + 1, ~rank.isnan())
            columns[f"ahead_{i + 1}_rank"] = rank
            columns[f"ahead_{i + 1}_prob"] = self.ahead_prob[..., i][kept]
        return pd.DataFrame(
            {
                name: column.numpy() if isinstance(column, Tensor) else column
                for name, column in columns.items()
            }
        )

    def plot(self, what: str = "final_prob", clip: int = 0) -> alt.LayerChart:
        """A heatmap of one clip: layers down, positions across, the likeliest token in each cell.

        Coloured by "final_prob" (the probability of the token that the model ends with),
        "top_prob", "entropy", "kl" or "final_rank". See also `save`.

        Raises `ResultError` for anything else, or a clip that is not there.
        """
        if what not in _SHOWN:
            raise ResultError(f"a plot is of {', '.join(_SHOWN)}; got {what!r}")
        n_clips = len(self.tokens)
        if not 0 <= clip < n_clips or not self.real[clip].any():
            raise ResultError(f"the lens has clips 0 to {n_clips - 1}; no positions of {clip}")
        down = "site" if len(set(self.streams)) > 1 else "layer"
        return text_heatmap(
            self._cells(clip, down),
            across="position",
            down=down,
            colour=what,
            text="top",
            title=f"{self.name.capitalize()}: {what.replace('_', ' ')}",
            subtitle=f"{Path(self.model).name}; clip {clip}; in the cells the likeliest token",
            bounds=(0.0, 1.0) if what.endswith("prob") else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but `logits` (.json), the table (.csv), or the first clip's heatmap
        (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LogitLens:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            texts = {int(token): text for token, text in found.pop("texts").items()}
            own = {name: _tensor(name, found) for name in found}
            return cls(**own, texts=texts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved logit lens: {error!r}") from error

    def _cells(self, clip: int, down: str) -> list[dict[Any, Any]]:
        """What a figure shows of one clip, site by site."""
        table = self.to_pandas().rename(columns={"top_1": "top", "top_1_prob": "top_prob"})
        table = table[table["clip"] == clip]
        if down == "site":
            table["site"] = table["layer"].astype(str) + " " + table["at"]
        table["position"] = table["position"].astype(str) + " " + table["token"].astype(str)
        return table[[down, "position", "top", "final", *_SHOWN]].to_dict("records")

    def _plain(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "logits"}
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }

    def _following(
        self, clip: Int[Tensor, " row"], position: Int[Tensor, " row"], known: Bool[Tensor, " row"]
    ) -> list[str | int]:
        named = self._named(self.tokens[clip, position.clamp(max=self.tokens.shape[1] - 1)])
        return [name if there else "" for name, there in zip(named, known.tolist(), strict=True)]

    def _named(self, tokens: Int[Tensor, " row"]) -> list[str | int]:
        return [self.texts.get(token, token) for token in tokens.tolist()]


def _tensor(name: str, found: dict[str, Any]) -> Any:
    """A field as it was before it was plain; null was NaN."""
    value = found[name]
    if name in ("sites", "positions", "model", "name"):
        return value
    if name in _IDS or name == "real":
        return torch.tensor(value)
    return torch.from_numpy(np.array(value, dtype=float)).float()
