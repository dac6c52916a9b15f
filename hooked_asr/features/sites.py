"""Which activations are kept, and how far a model has to run for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.config import ModelConfig
from hooked_asr.features.errors import FeatureError
from hooked_asr.names import HookSpec, ShortName, resolve, select

SitesAsked = str | Sequence[ShortName]
_WILDCARDS = "*?["
_IN_DECODER = ("decoder", "hook_decoder", "unembed")
_BEHIND_ENCODER = ("encoder_final_ln", "hook_encoder", "projector")


@dataclass(frozen=True)
class Sites:
    """Hooks in the order in which a forward fires them, and where it may stop.

    `encoder_stop`, `decoder_stop`: as `encode` and `decode` take them; None for the whole stack.
    """

    specs: tuple[HookSpec, ...]
    encoder_stop: int | None
    decoder_stop: int | None

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    @property
    def in_encoder(self) -> list[str]:
        """Those that fire without tokens; the projector of Qwen2-Audio among them."""
        return [name for name in self.names if not name.startswith(_IN_DECODER)]

    @property
    def in_decoder(self) -> list[str]:
        return [name for name in self.names if name.startswith(_IN_DECODER)]

    @property
    def clocks(self) -> list[str]:
        """What their positions are, each kind once (see `HookSpec.clock`)."""
        return list(dict.fromkeys(spec.clock for spec in self.specs))


def chosen_sites(model: Any, asked: SitesAsked) -> Sites:
    """The hooks that names, globs and short forms such as ("resid_post", 3, "encoder") mean.

    Raises `UnknownHookError` for what means none; `FeatureError` for attention maps, which have no
    vector at a position.
    """
    table = model.hook_table
    short = isinstance(asked, str) or any(isinstance(word, int) for word in asked)
    names = {name for one in ([asked] if short else asked) for name in _meant(one, table)}
    specs = tuple(spec for name, spec in table.items() if name in names)
    if not specs:
        raise FeatureError("no sites: name at least one hook, as in 'encoder.*.hook_resid_post'")
    for spec in specs:
        if "query" in spec.axes:
            raise FeatureError(
                f"{spec.name!r} is an attention map ({' '.join(spec.axes)}): it has no vector at a "
                "position to keep. Leave it out"
            )
    forced = any(spec.name.startswith(_IN_DECODER) for spec in specs)
    return Sites(specs, None if forced else _encoder_stop(specs), _stop(specs, "decoder"))


def width(spec: HookSpec, config: ModelConfig) -> int:
    """Numbers at one position, heads side by side."""
    return math.prod(spec.shape(config, 1, 1)[2:])


def _meant(one: Any, table: dict[str, HookSpec]) -> list[str]:
    if isinstance(one, str) and (one in table or any(card in one for card in _WILDCARDS)):
        return select(one, table)
    return [resolve(one, table)]


def _encoder_stop(specs: Sequence[HookSpec]) -> int | None:
    behind = any(spec.name.startswith(_BEHIND_ENCODER) for spec in specs)
    return None if behind else _stop(specs, "encoder")


def _stop(specs: Sequence[HookSpec], stack: str) -> int | None:
    """The layer behind the last one that is needed; None where the stack's end is."""
    if any(spec.name.startswith((f"{stack}_final_ln", "unembed")) for spec in specs):
        return None
    layers = [spec.name.split(".")[1] for spec in specs if spec.name.startswith(f"{stack}.")]
    return max(map(int, layers), default=-1) + 1
