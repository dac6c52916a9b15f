"""What an autoencoder makes of a site's rows, summed up clip by clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.features.batch import Kept, Work, run_batch
from hooked_asr.features.forcing import Asking
from hooked_asr.features.loading import Heard, Unusable, heard, made_ahead
from hooked_asr.features.sites import chosen_sites
from hooked_asr.manifests import Clip
from hooked_asr.names import HookSpec
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError


@dataclass(frozen=True, eq=False)
class ClipSums:
    """Of one clip: how many rows, their mean, and sums over rows and dimensions.

    `spread`: of squares about the clip's own mean; `error`: of squares of what the reconstruction
    leaves out; `active`: how many features are active, over all rows.
    """

    rows: int
    mean: Float64[Tensor, " d"]
    spread: float
    error: float
    active: float

    def about(self, mean: Float64[Tensor, " d"]) -> float:
        """The sum of squares about another mean."""
        return self.spread + self.rows * float((self.mean - mean).square().sum())


class SiteSums:
    """Clips as they come, and what is counted over all of their rows.

    - `counts`: in how many rows each feature is active; `greatest`: how active at most.
    - `rows_with`: how many rows have no active feature, how many one, …
    """

    def __init__(self, sae: SparseAutoencoder, memory: int) -> None:
        self._sae = sae
        # Features, what they are made of, and whether each is active.
        self._chunk = max(1, memory // (3 * 4 * sae.n_features))
        self.clips: list[ClipSums] = []
        self.counts: Int[Tensor, " feature"] = torch.zeros(sae.n_features, dtype=torch.long)
        self.rows_with: Int[Tensor, " n"] = torch.zeros(sae.n_features + 1, dtype=torch.long)
        self.greatest: Float[Tensor, " feature"] = torch.zeros(sae.n_features)

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "row d"]) -> None:
        """The rows of one clip."""
        wide = rows.double()
        mean = wide.mean(0) if len(rows) else wide.new_zeros(rows.shape[1])
        error = active = 0.0
        for some in rows.split(self._chunk):
            features = self._sae.encode(some)
            error += float(
                (some.double() - self._sae.decode(features).cpu().double()).square().sum()
            )
            on = features != 0
            self.counts += on.sum(0).cpu()
            each = on.sum(1).cpu()
            self.rows_with += each.bincount(minlength=len(self.rows_with))
            active += float(each.sum())
            self.greatest = self.greatest.maximum(features.amax(0).float().cpu())
        spread = float((wide - mean).square().sum())
        self.clips.append(ClipSums(len(rows), mean, spread, error, active))

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """The mean of all rows."""
        total = sum(clip.rows for clip in self.clips)
        weighted = torch.stack([clip.mean * clip.rows for clip in self.clips])
        return weighted.sum(0) / max(total, 1)


def summed(
    sae: SparseAutoencoder,
    model: Any,
    spec: HookSpec,
    clips: Sequence[Clip],
    asking: Asking,
    *,
    batch_size: int,
    memory: int,
    progress: bool,
) -> SiteSums:
    """Every clip's real rows of the site, as `features.harvest` counts them, summed up.

    Raises `SAEError` for a clip that cannot be used.
    """
    sums = SiteSums(sae, memory)
    pool = "tokens" if spec.clock == "pos" else "frames"
    work = Work(chosen_sites(model, spec.name), pool, asking, None)
    with tqdm(total=len(clips), desc=spec.name, unit="clip", disable=not progress) as bar:
        for batch in _batches(model, clips, work, batch_size):
            for one in run_batch(model, batch, work):
                sums.add(_usable(one).rows[spec.name])
                bar.update()
    return sums


def _batches(
    model: Any, clips: Sequence[Clip], work: Work, batch_size: int
) -> Iterator[list[Heard]]:
    def read(batch: Sequence[Clip]) -> list[Heard | Unusable]:
        return [heard(model, clip, work.forces, work.asking.prompt) for clip in batch]

    starts = range(0, len(clips), batch_size)
    for batch in made_ahead(read, (clips[start : start + batch_size] for start in starts)):
        yield [_usable(one) for one in batch]


def _usable(one: Any) -> Any:
    if isinstance(one, Kept | Heard):
        return one
    raise SAEError(one.reason) from one.error
