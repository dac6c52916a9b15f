"""One batch of clips through the model, and the rows that are kept of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.features.errors import FeatureError
from hooked_asr.features.forcing import Asking, Forced, forced_rows, padded
from hooked_asr.features.loading import Heard, Unusable
from hooked_asr.features.pools import Pool, PoolingHook
from hooked_asr.features.sites import Sites
from hooked_asr.shapes import Audio
from hooked_asr.timing import FRAMES_PER_SECOND, encoder_length, pooled_length


@dataclass(frozen=True)
class Work:
    """What is kept of every clip, and how; `dtype` None for the pool's own."""

    sites: Sites
    pool: Pool
    asking: Asking
    dtype: torch.dtype | None

    @property
    def forces(self) -> bool:
        """Whether the decoder runs."""
        return bool(self.sites.in_decoder)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of one clip: rows by site, how long its sound is (s), and what was said."""

    heard: Heard
    rows: dict[str, Float[Tensor, "row d"]]
    forced: Forced | None

    @property
    def seconds(self) -> float:
        return self.heard.n_frames / FRAMES_PER_SECOND

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.rows.values())))


@torch.no_grad()
def run_batch(model: Any, clips: Sequence[Heard], work: Work) -> list[Kept | Unusable]:
    """What is kept of each clip, or why nothing is; the model runs no further than it must."""
    found: list[Kept | Unusable] = [_too_short(one, work) or Kept(one, {}, None) for one in clips]
    usable = [one.heard for one in found if isinstance(one, Kept)]
    if not usable:
        return found
    encoded, rows = _encoded(model, usable, work)
    done: list[Kept | Unusable] = [
        Kept(one, own, None) for one, own in zip(usable, rows, strict=True)
    ]
    if work.forces:
        done = _decoded(model, done, encoded, work)
    left = iter(done)
    return [_checked(next(left), work) if isinstance(one, Kept) else one for one in found]


# --- Encoder and decoder --------------------------------------------------------------------------


def _encoded(
    model: Any, clips: Sequence[Heard], work: Work
) -> tuple[Audio, list[dict[str, Tensor]]]:
    """The encoder's output, or where it stopped, and each clip's rows."""
    mel = torch.cat([one.mel for one in clips])
    masks = {}
    if model.config.prefix:  # a Whisper hears the whole window, padding and all
        masks["mel_mask"] = torch.cat([one.mel_mask for one in clips]).to(model.device)
    names = work.sites.in_encoder
    hook = PoolingHook([_frames(one) for one in clips], work.pool)
    with model.hooks([(names, hook)] if names else []):
        encoded = model.encode(mel, stop_at=work.sites.encoder_stop, **masks)
        if "projector.hook_out" in names:
            model.projector(encoded)
    return encoded, hook.by_clip()


def _decoded(model: Any, clips: Sequence[Any], encoded: Audio, work: Work) -> list[Kept | Unusable]:
    """The clips with the decoder's rows too."""
    heard = [one.heard for one in clips]
    done: list[Any] = [
        _without_text(row, clip, work) or row
        for row, clip in zip(forced_rows(model, heard, encoded, work.asking), heard, strict=True)
    ]
    forced = {i: row for i, row in enumerate(done) if isinstance(row, Forced)}
    if not forced:
        return done
    able = list(forced)
    masks = {}
    if model.config.prefix:
        masks["mel_mask"] = torch.cat([heard[i].mel_mask for i in able]).to(model.device)
    hook = PoolingHook([_frames(heard[i]) | _tokens(forced[i], work.pool) for i in able], work.pool)
    # Nothing looks behind itself: rows padded behind need no mask.
    tokens = padded(model, [row.tokens for row in forced.values()])
    with model.hooks([(work.sites.in_decoder, hook)]):
        model.decode(tokens, encoded[able], stop_at=work.sites.decoder_stop, **masks)
    for i, own in zip(able, hook.by_clip(), strict=True):
        done[i] = Kept(heard[i], clips[i].rows | own, forced[i])
    return done


# --- Positions that count -------------------------------------------------------------------------


def _frames(clip: Heard) -> dict[str, slice | list[int]]:
    n = clip.n_frames
    lengths = {"frame": n, "audio": encoder_length(n), "pooled": pooled_length(n)}
    return {clock: slice(0, length) for clock, length in lengths.items()}


def _tokens(row: Forced, pool: Pool) -> dict[str, slice | list[int]]:
    """Tokens of text; the last of the prompt is the last where there are none."""
    if pool == "last" and not row.places:
        return {"pos": [row.n_prompt - 1]}
    return {"pos": row.places}


# --- What cannot be kept --------------------------------------------------------------------------


def _too_short(clip: Heard, work: Work) -> Unusable | None:
    if not clip.n_frames:
        return Unusable(clip.clip, FeatureError("it has no frame of sound"))
    if "pooled" in work.sites.clocks and pooled_length(clip.n_frames) < 1:
        return Unusable(clip.clip, FeatureError("it is too short: a pooled position takes 40 ms"))
    return None


def _without_text(row: Forced | Unusable, clip: Heard, work: Work) -> Unusable | None:
    """No clip has a mean, or what else takes all of its tokens, without any."""
    if isinstance(row, Unusable) or row.places or work.pool in ("last", "tokens"):
        return None
    return Unusable(clip.clip, FeatureError("nothing is said in it: there is no token to pool"))


def _checked(one: Kept | Unusable, work: Work) -> Kept | Unusable:
    """The rows as they are kept; refused where there is NaN or infinity in them."""
    if isinstance(one, Unusable):
        return one
    rows = {}
    for name in work.sites.names:
        own = one.rows[name]
        kept = own.to(work.dtype or own.dtype)
        bad = (~torch.isfinite(kept)).any(1).nonzero().flatten().tolist()
        if bad:
            return Unusable(one.heard.clip, _not_finite(name, bad, own, kept))
        rows[name] = kept
    return Kept(one.heard, rows, one.forced)


def _not_finite(name: str, bad: list[int], own: Tensor, kept: Tensor) -> FeatureError:
    where = f"row {bad[0]} of {name!r}" if len(kept) > 1 else repr(name)
    if bool(torch.isfinite(own).all()):
        limit = torch.finfo(kept.dtype).max
        return FeatureError(
            f"{where} does not fit {kept.dtype}, which ends at {limit:g}: give dtype=torch.float32"
        )
    return FeatureError(
        f"{where} is NaN or infinite ({kept.dtype}): run the model in float32 or bfloat16, or look "
        "at its weights"
    )
