"""Which tokens a feature of the decoder's stream speaks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Favoured:
    """Tokens and what a feature at 1 adds to their logits: the most, and the least."""

    up: list[tuple[str, float]]
    down: list[tuple[str, float]]


def in_decoder_stream(model: Any, sae: SparseAutoencoder) -> bool:
    """Whether directions of the site are directions of the decoder's residual stream."""
    spec = sae.spec(model)
    return spec.clock == "pos" and "hook_resid" in spec.leaf


@torch.no_grad()
def direction_logits(model: Any, direction: Float[Tensor, " d"]) -> Float[Tensor, " d_vocab"]:
    """A direction through the final norm and the unembedding: its direct effect on the logits.

    The norm's scale is taken as 1, as it depends on the rest of the stream; the logits' mean is
    taken off, as no probability depends on it.
    """
    given = direction.to(model.device, model.dtype)
    scale = torch.ones(1, device=given.device, dtype=given.dtype)
    logits = (model.decoder_final_ln.with_scale(given, scale) @ model.W_U.to(given)).float()
    return logits - logits.mean()


def favoured(model: Any, direction: Float[Tensor, " d"], top: int = 10) -> Favoured:
    """The tokens at both ends of `direction_logits`."""
    logits = direction_logits(model, direction)
    top = min(top, len(logits))
    ends = [logits.topk(top), logits.topk(top, largest=False)]
    up, down = (
        [
            (str(model.tokenizer.decode([token])), value)
            for token, value in zip(end.indices.tolist(), end.values.tolist(), strict=True)
        ]
        for end in ends
    )
    return Favoured(up, down)
