"""How active an autoencoder's features are in one clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.audio import log_mel_and_mask
from hooked_asr.lenses.forced import forced_run
from hooked_asr.manifests import Clip
from hooked_asr.names import HookSpec
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.timing import FRAMES, encoder_length, pooled_length


@dataclass(frozen=True, eq=False)
class Activity:
    """The mean over a clip's positions, and the greatest there."""

    mean: Float[Tensor, " feature"]
    greatest: Float[Tensor, " feature"]


@torch.no_grad()
def activity(
    sae: SparseAutoencoder,
    model: Any,
    spec: HookSpec,
    clip: Clip,
    positions: Sequence[int] | None,
    prompt: Mapping[str, Any],
) -> Activity:
    """A clip's features at its real positions, or at some.

    Raises `SAEError` for positions that it does not have.
    """
    if spec.clock == "pos":
        x = _in_decoder(model, spec, clip, prompt)
    else:
        x = _in_encoder(model, spec, clip)
    if positions is not None:
        if not positions or min(positions) < 0 or max(positions) >= len(x):
            raise SAEError(
                f"clip {clip.id!r} has positions 0 to {len(x) - 1} at {spec.name}; asked for "
                f"{list(positions)}"
            )
        x = x[list(positions)]
    features = sae.encode(x.reshape(len(x), sae.d_in)).float().cpu()
    return Activity(features.mean(0), features.amax(0))


def _in_decoder(
    model: Any, spec: HookSpec, clip: Clip, prompt: Mapping[str, Any]
) -> Float[Tensor, "pos ..."]:
    known = dict(prompt)
    if "language" in model.asked_by and clip.language is not None:
        known.setdefault("language", clip.language)
    run = forced_run(model, clip.audio_path, clip.text, **known)
    _, cache = model.run_with_cache(**run.inputs, names_filter=spec.name)
    found: Tensor = cache[spec.name][0]
    return found


def _in_encoder(model: Any, spec: HookSpec, clip: Clip) -> Float[Tensor, "pos ..."]:
    """At what hears any of the clip."""
    mel, mask = log_mel_and_mask(clip.audio_path, model.working_extractor)
    # A Whisper hears the whole window, padding and all.
    masks = {"mel_mask": mask.to(model.device)} if model.config.prefix else {}
    kept: dict[str, Tensor] = {}
    with model.hooks([(spec.name, lambda x, hook: kept.update(x=x[0]))]):
        encoded = model.encode(mel.to(model.device, model.dtype), **masks)
        if spec.name.startswith("projector"):
            model.projector(encoded)
    n_frames = int(mask.sum())
    lengths = {"frame": n_frames, "audio": encoder_length(n_frames)}
    n_pos = lengths[spec.clock] if FRAMES[spec.clock] < 4 else pooled_length(n_frames)
    return kept["x"][:n_pos]
