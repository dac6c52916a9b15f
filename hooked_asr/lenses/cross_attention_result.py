"""What a cross-attention lens sees, as tensors, tables and figures."""

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
from hooked_asr.speech import rank_heads
from hooked_asr.viz.heatmap import heatmap

_BY_TOKEN = ("share", "entropy", "norm_entropy", "centre", "peak")
_BY_HEAD = ("share", "entropy", "norm_entropy", "monotonicity", "alignment")
_ORDERS = ("alignment", "monotonicity")
_MAPS = ("pattern", "norms")
_KEPT_MAPS = ("pattern", "value_norms")
_COLUMNS = 300  # of a figure; longer clips are summed over neighbours


@dataclass(frozen=True, eq=False)
class CrossAttentionLens:
    """Where in time the heads of a decoder look, and how well they follow the sound.

    Axes `layer` and `head` are those of `layers` and `heads`; `clip` the recordings, `pos` the
    positions read. A position looks for the sound of the token that it predicts, the next one. All
    on the CPU; NaN where there is only padding.

    - `rows`: the row of the inputs that holds each clip; `n_audio`: audio positions of each.
    - `seconds`: when each audio position begins, 0.02 s each (Qwen2-Audio: 0.04 s).
    - `tokens`: of the clip's row; `real`: where the positions read are no padding; `text`: where
      the token is a word's, behind the prompt.
    - `share`: attention to the clip in all; 1 for a Whisper's whole window. All below is of this
      share alone, and NaN where it is 0.
    - `entropy`: nats, of attention; `norm_entropy`: of the norms, scaled to sum to 1.
    - `centre`, `peak`: the mean moment that is attended to, and the one attended to most (s).
    - `monotonicity`: from -1 to 1, whether later tokens attend to later moments: Spearman's rank
      correlation of token and centre over the text; NaN for less than three tokens (see
      `cross_attention_statistics.monotonicity`).
    - `alignment`: how much attention of the text stands out on the path through the sound that all
      the heads read agree on (see `speech.alignment_scores`); NaN without text, or without maps.
    - `pattern`: attention probabilities. `value_norms`: the norm of what a head would write to the
      stream if it looked at one position alone. Only where maps were kept.
    - `texts`: of every token, where the model has a tokenizer.
    """

    layers: list[int]
    heads: list[int]
    positions: list[int]
    rows: list[int]
    n_audio: list[int]
    seconds: Float[Tensor, " audio"]
    tokens: Int[Tensor, "clip _"]
    real: Bool[Tensor, "clip pos"]
    text: Bool[Tensor, "clip pos"]
    share: Float[Tensor, "layer head clip pos"]
    entropy: Float[Tensor, "layer head clip pos"]
    norm_entropy: Float[Tensor, "layer head clip pos"]
    centre: Float[Tensor, "layer head clip pos"]
    peak: Float[Tensor, "layer head clip pos"]
    monotonicity: Float[Tensor, "layer head clip"]
    alignment: Float[Tensor, "layer head clip"]
    model: str
    texts: dict[int, str] = field(default_factory=dict)
    pattern: Float[Tensor, "layer head clip pos audio"] | None = None
    value_norms: Float[Tensor, "layer head clip audio"] | None = None

    @property
    def norms(self) -> Float[Tensor, "layer head clip pos audio"]:
        """‖a v W_O‖, what each look adds to the stream, without bias and without layer norm.

        Made when asked for, and as large as `pattern`.

        Raises `ResultError` where no maps were kept.

        Source: "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms" (2020),
        section 3.
        """
        pattern, value_norms = self._maps()
        return pattern * value_norms[:, :, :, None]

    def alignment_heads(self, k: int = 10, by: str = "alignment") -> list[list[int]]:
        """The `k` heads that follow the sound best, `[[layer, head], …]`, the best first.

        As `model.generation_config.alignment_heads` takes them, for `generate(words=True)`. By
        "alignment", or by "monotonicity", averaged over the clips that have any.

        Raises `ResultError` where no clip has any, or for more heads than were read.
        """
        if by not in _ORDERS:
            raise ResultError(f"heads are ranked by {' or '.join(_ORDERS)}; got {by!r}")
        n_heads = len(self.layers) * len(self.heads)
        if not 1 <= k <= n_heads:
            raise ResultError(f"{n_heads} heads were read; asked for {k}")
        scores = getattr(self, by).nanmean(-1)
        if scores.isnan().all():
            raise ResultError(
                f"no head has a score by {by}: give a transcript of three tokens or more, and "
                "keep_maps=True for alignment"
            )
        ranked = rank_heads(scores.nan_to_num(-math.inf))[:k]
        return [[self.layers[one.layer], self.heads[one.head]] for one in ranked]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each head, clip and position but padding; tokens as texts, or as ids."""
        shape = (len(self.layers), len(self.heads), -1, -1)
        layer, head, clip, place = self.real.expand(shape).nonzero().unbind(1)
        position = torch.tensor(self.positions)[place]
        columns: dict[str, Any] = {
            "layer": np.array(self.layers)[layer],
            "head": np.array(self.heads)[head],
            "clip": clip.numpy(),
            "position": position.numpy(),
            "token": self._named(self.tokens[clip, position]),
            "text": self.text[clip, place].numpy(),
        }
        found = {name: getattr(self, name)[layer, head, clip, place] for name in _BY_TOKEN}
        return pd.DataFrame(columns | {name: one.numpy() for name, one in found.items()})

    def heads_table(self) -> pd.DataFrame:
        """One row for each head: means over the text of all clips, and over clips; NaN without.

        Columns: layer, head, share, entropy, norm_entropy, monotonicity, alignment.
        """
        layer, head = torch.ones(len(self.layers), len(self.heads)).nonzero().unbind(1)
        columns = {"layer": np.array(self.layers)[layer], "head": np.array(self.heads)[head]}
        means = {name: self._of_heads(name)[layer, head].numpy() for name in _BY_HEAD}
        return pd.DataFrame(columns | means)

    def plot(
        self,
        layer: int | None = None,
        head: int | None = None,
        clip: int = 0,
        what: str | None = None,
    ) -> alt.Chart | alt.FacetChart:
        """A head's map of one clip, tokens down and seconds across; or all heads at a glance.

        - With `layer` and `head`: their "pattern", or "norms". Of a long clip, neighbouring
          positions are summed.
        - Without: a cell for each head, coloured by "monotonicity", "alignment", "entropy",
          "norm_entropy" or "share" over all clips.

        Raises `ResultError` for what is not there. See also `save`.
        """
        if layer is None and head is None:
            return self._overview(what or "monotonicity")
        if layer not in self.layers or head not in self.heads:
            raise ResultError(
                f"a map is of one of layers {self.layers} and of one of heads {self.heads}; got "
                f"layer={layer}, head={head}"
            )
        where = self.layers.index(layer), self.heads.index(head)
        return self._map(where, clip, what or "pattern")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the maps (.json), the table (.csv), or the heads at a glance (.html,
        .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CrossAttentionLens:
        """Read what `save` wrote as JSON: a lens without maps.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            texts = {int(token): text for token, text in found.pop("texts").items()}
            own = {name: _field(name, value) for name, value in found.items()}
            return cls(**own, texts=texts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved cross-attention lens: {error!r}") from error

    # --- Figures ----------------------------------------------------------------------------------

    def _overview(self, what: str) -> alt.Chart | alt.FacetChart:
        if what not in _BY_HEAD:
            raise ResultError(f"heads are coloured by {', '.join(_BY_HEAD)}; got {what!r}")
        clips = "one clip" if len(self.rows) == 1 else f"mean over {len(self.rows)} clips"
        return heatmap(
            self._of_heads(what),
            {"layer": self.layers, "head": self.heads},
            label=what.replace("_", " "),
            title=f"Attention to the sound: {what.replace('_', ' ')} of each head",
            subtitle=f"{Path(self.model).name}; {clips}",
            centred=what in _ORDERS,
        )

    def _map(self, where: tuple[int, int], clip: int, what: str) -> alt.Chart | alt.FacetChart:
        if what not in _MAPS:
            raise ResultError(f"a head's map is of its {' or '.join(_MAPS)}; got {what!r}")
        if not 0 <= clip < len(self.rows) or not self.real[clip].any():
            last = len(self.rows) - 1
            raise ResultError(f"the lens has clips 0 to {last}; no positions of {clip}")
        pattern, value_norms = self._maps()
        kept = self.real[clip]
        values = pattern[where][clip, kept, : self.n_audio[clip]]
        if what == "norms":
            values = values * value_norms[where][clip, : self.n_audio[clip]]
        values, seconds = _summed(values, self.seconds)
        layer, head = self.layers[where[0]], self.heads[where[1]]
        width = float(seconds[1] - seconds[0]) if len(seconds) > 1 else None
        return heatmap(
            values,
            {"token": self._labels(clip), "seconds": [f"{one:.2f}" for one in seconds.tolist()]},
            label="attention" if what == "pattern" else "norm",
            title=f"Layer {layer}, head {head}: {what} over the sound",
            subtitle=f"{Path(self.model).name}; clip {clip}"
            + (f"; cells of {width:.2f} s" if width else ""),
            centred=False,
        )

    def _labels(self, clip: int) -> list[str]:
        places = torch.tensor(self.positions)[self.real[clip]]
        named = self._named(self.tokens[clip, places])
        return [f"{place} {name}" for place, name in zip(places.tolist(), named, strict=True)]

    # --- Parts ------------------------------------------------------------------------------------

    def _maps(self) -> tuple[Tensor, Tensor]:
        if self.pattern is None or self.value_norms is None:
            raise ResultError(
                "this lens has no maps: run it with keep_maps=True; a saved lens has none"
            )
        return self.pattern, self.value_norms

    def _of_heads(self, name: str) -> Float[Tensor, "layer head"]:
        values: Tensor = getattr(self, name)
        if name in _BY_TOKEN:
            values = values[:, :, self.text]
        return values.nanmean(-1)

    def _named(self, tokens: Int[Tensor, " row"]) -> list[str | int]:
        return [self.texts.get(token, token) for token in tokens.tolist()]

    def _plain(self) -> dict[str, Any]:
        names = [one.name for one in fields(self) if one.name not in _KEPT_MAPS]
        values = {name: getattr(self, name) for name in names}
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }


def _summed(
    values: Float[Tensor, "pos audio"], seconds: Float[Tensor, " audio"]
) -> tuple[Float[Tensor, "pos column"], Float[Tensor, " column"]]:
    """Few enough columns for a figure: sums over as many neighbours, and when each begins."""
    n = values.shape[1]
    size = math.ceil(n / _COLUMNS)
    parts = torch.split(values, size, dim=1)
    return torch.stack([part.sum(1) for part in parts], 1), seconds[:n:size]


def _field(name: str, value: Any) -> Any:
    """A field as it was before it was plain; null was NaN."""
    if name in ("layers", "heads", "positions", "rows", "n_audio", "model"):
        return value
    if name in ("tokens", "real", "text"):
        return torch.tensor(value)
    return torch.from_numpy(np.array(value, dtype=float)).float()
