"""What a direct logit attribution finds, as tensors, a table and a figure."""

from __future__ import annotations

import json
import os
import re
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
from hooked_asr.viz.heatmap import heatmap

_TENSORS = ("tokens", "real", "targets", "versus")
_LABEL = re.compile(
    r"(?P<layer>\d+)_(?P<part>attn|cross_attn|mlp|layer)(?:_out|_[hn](?P<unit>\d+))?"
)
_N_SHOWN = 30  # neurons in a figure


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """What each part of the decoder adds to a token's logit, at each position.

    All on the CPU; NaN (-1 among ids) where there is only padding.

    - `of`: "layer", "component", "head" or "neuron". `labels`: of the terms: "embed", "pos_embed",
      "0_layer", "0_attn_out", "0_cross_attn_h3", "0_mlp_n17", "bias" (the layers' output biases),
      "final_ln_bias", …
    - `positions`: those that were read. `tokens`: of the run. `real`: where they are no padding.
    - `targets`: whose logit it is; `versus`: whose logit is subtracted, or None.
    - `values`: what each term adds (nats, as logits are). `logits`: the run's own, or their
      difference.
    - `texts`: of every token above, where the model has a tokenizer.
    """

    of: str
    labels: list[str]
    positions: list[int]
    tokens: Int[Tensor, "batch _"]
    real: Bool[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    versus: Int[Tensor, "batch pos"] | None
    values: Float[Tensor, "term batch pos"]
    logits: Float[Tensor, "batch pos"]
    model: str
    texts: dict[int, str] = field(default_factory=dict)

    @property
    def remainder(self) -> Float[Tensor, "batch pos"]:
        """What of the logits is in no term.

        Rounding (a model in half precision rounds much), and what hooks changed outside of every
        part: in the stream between two parts, in the sum of heads or neurons, behind the last
        layer.
        """
        return self.logits - self.values.sum(0)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each term, clip and position but padding; tokens as texts, or as ids.

        `target` (and `versus`) is the token whose logit it is, `token` the one at the position;
        `layer` and `unit`, a head or a neuron, are missing where a term has none.
        """
        kept = self.real.expand(len(self.labels), -1, -1)
        term, clip, place = kept.nonzero().unbind(1)
        position = torch.tensor(self.positions)[place]
        columns: dict[str, Any] = {
            name: column.take(term.numpy()) for name, column in self._terms().items()
        }
        columns |= {"clip": clip.numpy(), "position": position.numpy()}
        columns["token"] = self._named(self.tokens[clip, position])
        columns["target"] = self._named(self.targets[clip, place])
        if self.versus is not None:
            columns["versus"] = self._named(self.versus[clip, place])
        return pd.DataFrame({**columns, "value": self.values[kept].numpy()})

    def top(
        self, k: int = 10, clip: int | None = None, position: int | None = None
    ) -> pd.DataFrame:
        """The `k` terms that add or take most, the largest first.

        By the absolute `value`: the mean over the real positions of all clips, or of one; or at one
        position of the run.

        Raises `ResultError` for a clip or a position that was not read.
        """
        mean = self._mean(clip, position)
        order = mean.abs().argsort(descending=True, stable=True)[:k].numpy()
        chosen = {name: column.take(order) for name, column in self._terms().items()}
        return pd.DataFrame({**chosen, "value": mean.numpy()[order]})

    def plot(self, clip: int = 0, position: int | None = None) -> alt.Chart | alt.FacetChart:
        """A heatmap of one clip: terms down, positions across; red adds to the logit, blue takes.

        Of heads it is layers down, heads across, their mean over the clip's positions. Of neurons
        there are only the 30 that matter most, and what is no neuron is left out. `position`: one
        of the run's alone. See also `save`.

        Raises `ResultError` for a clip or a position that was not read.
        """
        there = self._there(clip, position)[clip]
        subtitle = f"{Path(self.model).name}; clip {clip}"
        title = "Direct logit attribution" + self._asked(clip, there)
        if self.of == "head":
            values, axes = self._grid(self._mean(clip, position))
            where = "mean over positions" if position is None else f"position {position}"
            subtitle = f"{subtitle}; {where}"
        else:
            rows = self._rows(clip, position)
            subtitle += f"; the {len(rows)} greatest neurons" if self.of == "neuron" else ""
            values = self.values[rows, clip][:, there]
            axes = {"term": [self.labels[row] for row in rows], "position": self._columns(clip)}
            axes["position"] = [axes["position"][i] for i in there.nonzero()[:, 0].tolist()]
        return heatmap(values, axes, label="logit", title=title, subtitle=subtitle)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the first clip's heatmap (.html, .png,
        .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DirectAttribution:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            found["texts"] = {int(token): text for token, text in found["texts"].items()}
            kind = {"float32": torch.float32, "float64": torch.float64}[found.pop("dtype")]
            for name in ("values", "logits"):  # null was NaN
                found[name] = torch.from_numpy(np.array(found[name], dtype=float)).to(kind)
            ids = {name: found[name] for name in _TENSORS if found[name] is not None}
            return cls(**{**found, **{name: torch.tensor(value) for name, value in ids.items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved attribution: {error!r}") from error

    # --- Terms and positions ----------------------------------------------------------------------

    def _terms(self) -> dict[str, Any]:
        """The columns that tell a term, of which some have no layer and no unit."""
        found = [_LABEL.fullmatch(label) for label in self.labels]
        numbers = {
            name: pd.array([one and one[name] and int(one[name]) for one in found], dtype="Int64")
            for name in ("layer", "unit")
        }
        parts = [
            one["part"] if one else label for one, label in zip(found, self.labels, strict=True)
        ]
        return {
            "term": np.array(self.labels, dtype=object),
            "layer": numbers["layer"],
            "part": np.array(parts, dtype=object),
            "unit": numbers["unit"],
        }

    def _there(self, clip: int | None, position: int | None) -> Bool[Tensor, "batch pos"]:
        """The real positions of one clip or all, or one of these."""
        there = self.real.clone()
        if clip is not None:
            there &= torch.arange(len(there))[:, None] == clip
        if position is not None:
            there &= torch.tensor(self.positions) == position
        if not there.any():
            raise ResultError(
                f"the attribution has clips 0 to {len(there) - 1} at positions "
                f"{self.positions[0]} to {self.positions[-1]}, but for padding; asked for "
                f"clip={clip}, position={position}"
            )
        return there

    def _mean(self, clip: int | None, position: int | None) -> Float[Tensor, " term"]:
        return self.values[:, self._there(clip, position)].mean(-1)

    # --- What a figure shows ----------------------------------------------------------------------

    def _grid(
        self, mean: Float[Tensor, " term"]
    ) -> tuple[Float[Tensor, "layer *attention head"], dict[str, list[Any]]]:
        """Heads by layer and attention."""
        terms = self._terms()
        heads = [i for i, unit in enumerate(terms["unit"]) if unit is not pd.NA]
        attentions = list(dict.fromkeys(terms["part"][i] for i in heads))
        n_layers = terms["layer"].max() + 1
        grid = mean[heads].reshape(n_layers, len(attentions), -1)
        axes = {
            "layer": list(range(n_layers)),
            "attention": attentions,
            "head": list(range(grid.shape[-1])),
        }
        if len(attentions) == 1:
            axes.pop("attention")
            grid = grid[:, 0]
        return grid, axes

    def _rows(self, clip: int, position: int | None) -> list[int]:
        """The terms of a figure: all, or the greatest neurons, in the order of the forward."""
        if self.of != "neuron":
            return list(range(len(self.labels)))
        neurons = [i for i, label in enumerate(self.labels) if "_mlp_n" in label]
        there = self.values[neurons][:, self._there(clip, position)]
        return sorted(neurons[i] for i in there.abs().amax(-1).topk(min(_N_SHOWN, len(there)))[1])

    def _columns(self, clip: int) -> list[str]:
        """Each position with its token, and the token that is looked for there."""
        here = self._named(self.tokens[clip, self.positions])
        asked = self._named(self.targets[clip])
        columns = zip(self.positions, here, asked, strict=True)
        return [f"{position} {str(a).strip()} → {str(b).strip()}" for position, a, b in columns]

    def _asked(self, clip: int, there: Bool[Tensor, " pos"]) -> str:
        """Which tokens, where they are the same at all positions."""
        found = []
        for ids in (self.targets, self.versus):
            tokens = [] if ids is None else self._named(ids[clip, there].unique())
            found.append(repr(tokens[0]) if len(tokens) == 1 else "")
        return (f" of {found[0]}" if found[0] else "") + (f", less {found[1]}" if found[1] else "")

    def _plain(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        plain = {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return plain | {"dtype": str(self.values.dtype).removeprefix("torch.")}

    def _named(self, tokens: Int[Tensor, " row"]) -> list[str | int]:
        return [self.texts.get(token, token) for token in tokens.tolist()]
