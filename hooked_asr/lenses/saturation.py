"""From which layer on a model's prediction stands."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit_result import LogitLens

_RULES = ("stable", "first")


def saturation_layers(
    lens: LogitLens, rule: str = "stable", at: str | None = None
) -> Int[Tensor, "batch pos"]:
    """At each position, the layer at which the likeliest token becomes that of the model's end.

    - `rule`: "stable" is the first layer from which on it stays that token; "first" the first layer
      at which it is that token, though later ones may lose it again.
    - `at`: which of the lens's streams; not needed where it has one.

    Layers count from 0, which is the answer where every layer already agrees. The number of layers
    itself means that none does (possible of any stream but "resid_post"), and -1 is padding.

    Raises `LensError` for another rule, or a stream that the lens does not have.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), whose text describes
    "stable" and whose formula "first".
    """
    streams = list(dict.fromkeys(lens.streams))
    if at is None and len(streams) == 1:
        (at,) = streams
    if at not in streams:
        raise LensError(f"this lens reads {', '.join(streams)}; say which, got at={at!r}")
    chosen = [i for i, one in enumerate(lens.streams) if one == at]
    agrees = lens.top_tokens[chosen, ..., 0] == lens.final_tokens
    return torch.where(lens.real, saturated_from(agrees, rule), -1)


def saturated_from(
    agrees: Bool[Tensor, "layer *axes"], rule: str = "stable"
) -> Int[Tensor, "*axes"]:
    """The first layer that agrees, with all behind it ("stable") or not ("first").

    >>> agrees = torch.tensor([False, True, False, True, True])
    >>> saturated_from(agrees).item(), saturated_from(agrees, "first").item()
    (3, 1)

    The number of layers where there is none.
    """
    if rule not in _RULES:
        raise LensError(f"a layer saturates by the rule {' or '.join(_RULES)}; got {rule!r}")
    held = agrees.int()
    if rule == "stable":
        return len(held) - held.flip(0).cumprod(0).sum(0)
    return (1 - held).cumprod(0).sum(0)
