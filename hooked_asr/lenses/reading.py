"""Streams through the final norm and the unembedding, never more than a few rows of logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.lenses.distributions import Distribution, compare
from hooked_asr.lenses.trace import last_stream

# A stream of a site, as it would be behind the last layer: `translate(site, stream)`.
Translate = Callable[[str, Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]

_CHUNK = 2**26  # bytes of logits, in float32, that are read at a time
_NEAR = 2**20  # bytes of them that a processor goes over again and again without fetching them


def unembedded(model: Any, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """A stream as it stands, through the final norm and the unembedding."""
    logits: Tensor = model.unembed(model.decoder_final_ln(stream[None]))
    return logits[0]


@dataclass(frozen=True)
class Reading:
    """The streams of one run, and how they become numbers.

    - `streams`: `[batch pos d_model]`, by their hooks' names; `sites` among them are read.
    - `logits`: the run's own. They stand for the last layer's "resid_post", or where there are
      none, come from it.
    - `ahead`: the tokens looked for at each position.
    - `translate`: what streams go through before they are read; None to read them as they are.
    """

    model: Any
    sites: list[str]
    streams: Mapping[Any, Tensor]
    logits: Float[Tensor, "batch pos d_vocab"] | None
    ahead: Int[Tensor, "batch pos ahead"]
    top_k: int
    keep_logits: bool
    translate: Translate | None = None

    def read(self, progress: bool) -> dict[str, Tensor]:
        """On the CPU, by the fields of `LogitLens`: `[batch pos]` the final tokens,
        `[site batch pos ...]` the rest."""
        batch, n_pos, _ = self.ahead.shape
        size = max(1, _CHUNK // (4 * self.model.config.d_vocab))
        starts = range(0, batch * n_pos, size)
        total = len(starts) * len(self.sites)
        with tqdm(total=total, desc="logit lens", unit="layer", disable=not progress) as bar:
            parts = [self._chunk(slice(start, start + size), bar) for start in starts]
        whole = _joined(parts, 1)
        found = {name: values.unflatten(1, (batch, n_pos)) for name, values in whole.items()}
        return found | {"final_tokens": found["final_tokens"][0]}

    def _chunk(self, rows: slice, bar: Any) -> dict[str, Tensor]:
        own = self._own(rows)
        finals = [Distribution.of(block) for block in _blocks(own)]
        ahead = self.ahead.flatten(0, 1)[rows].to(own.device).split(len(finals[0].logits))
        last = last_stream(self.model)
        of_sites = []
        for site in self.sites:
            logits = own if site == last else self._unembedded(site, rows)
            heres = finals if site == last else map(Distribution.of, _blocks(logits))
            numbers = [
                compare(here, final, following, self.top_k)
                for here, final, following in zip(heres, finals, ahead, strict=True)
            ]
            of_sites.append(_joined(numbers) | ({"logits": logits} if self.keep_logits else {}))
            bar.update()
        found = {name: torch.stack([one[name].cpu() for one in of_sites]) for name in of_sites[0]}
        return found | {"final_tokens": torch.cat([one.top for one in finals])[None].cpu()}

    def _own(self, rows: slice) -> Float[Tensor, "row d_vocab"]:
        if self.logits is not None:
            return self.logits.flatten(0, 1)[rows]
        return unembedded(self.model, self.streams[last_stream(self.model)].flatten(0, 1)[rows])

    def _unembedded(self, site: str, rows: slice) -> Float[Tensor, "row d_vocab"]:
        stream = self.streams[site].flatten(0, 1)[rows]
        if self.translate is not None:
            stream = self.translate(site, stream)
        return unembedded(self.model, stream)


def _blocks(logits: Float[Tensor, "row d_vocab"]) -> Sequence[Float[Tensor, "some d_vocab"]]:
    """Some rows at a time, where that is faster."""
    if logits.device.type != "cpu":
        return [logits]
    return logits.split(max(1, _NEAR // (4 * logits.shape[-1])))


def _joined(parts: Sequence[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts], dim) for name in parts[0]}
