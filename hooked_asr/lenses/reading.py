"""Streams through the final norm and the unembedding, never more than a few rows of logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.lenses.distributions import Distribution, compare

# A stream of a site, as it would be behind the last layer: `translate(site, stream)`.
Translate = Callable[[str, Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]

_CHUNK = 2**26  # bytes of logits, in float32, that are read at a time


@dataclass(frozen=True)
class Reading:
    """The streams of one run, and how they become numbers.

    - `streams`: `[batch pos d_model]`, by their hooks' names; `sites` among them are read.
    - `logits`: the run's own. They stand for the last layer's "resid_post".
    - `ahead`: the tokens looked for at each position.
    - `translate`: what streams go through before they are read; None to read them as they are.
    """

    model: Any
    sites: list[str]
    streams: Mapping[Any, Tensor]
    logits: Float[Tensor, "batch pos d_vocab"]
    ahead: Int[Tensor, "batch pos ahead"]
    top_k: int
    keep_logits: bool
    translate: Translate | None = None

    def read(self, progress: bool) -> dict[str, Tensor]:
        """`[site batch pos ...]` on the CPU, by the fields of `LogitLens`."""
        batch, n_pos, d_vocab = self.logits.shape
        size = max(1, _CHUNK // (4 * d_vocab))
        starts = range(0, batch * n_pos, size)
        total = len(starts) * len(self.sites)
        with tqdm(total=total, desc="logit lens", unit="layer", disable=not progress) as bar:
            parts = [self._chunk(slice(start, start + size), bar) for start in starts]
        whole = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
        return {name: values.unflatten(1, (batch, n_pos)) for name, values in whole.items()}

    def _chunk(self, rows: slice, bar: Any) -> dict[str, Tensor]:
        own = self.logits.flatten(0, 1)[rows]
        final = Distribution.of(own)
        ahead = self.ahead.flatten(0, 1)[rows].to(own.device)
        of_sites = []
        for site in self.sites:
            logits = own if site == self._last else self._unembedded(site, rows)
            here = final if site == self._last else Distribution.of(logits)
            numbers = compare(here, final, ahead, self.top_k)
            of_sites.append(numbers | ({"logits": logits} if self.keep_logits else {}))
            bar.update()
        return {name: torch.stack([one[name].cpu() for one in of_sites]) for name in of_sites[0]}

    @property
    def _last(self) -> str:
        return f"decoder.{self.model.config.decoder.n_layers - 1}.hook_resid_post"

    def _unembedded(self, site: str, rows: slice) -> Float[Tensor, "row d_vocab"]:
        stream = self.streams[site].flatten(0, 1)[rows]
        if self.translate is not None:
            stream = self.translate(site, stream)
        logits: Tensor = self.model.unembed(self.model.decoder_final_ln(stream[None]))
        return logits[0]
