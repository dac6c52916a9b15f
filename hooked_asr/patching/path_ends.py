"""The ends of paths: what can send, what can receive, and between which of them a path leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import Site
from hooked_asr.names import select

SiteLike = Site | str

LOGITS = "unembed.hook_out"
# What holds the work of each part: where this is as it was, the part writes what it wrote.
PARTS = {"attn": "attn.hook_z", "cross_attn": "cross_attn.hook_z", "mlp": "mlp.hook_post"}

_WRITERS = (
    "attn.hook_z", "attn.hook_result", "cross_attn.hook_z", "cross_attn.hook_result",
    "mlp.hook_post", "hook_attn_out", "hook_cross_attn_out", "hook_mlp_out", "hook_resid_pre",
    "hook_resid_mid", "hook_resid_mid_cross", "hook_resid_post", "hook_embed", "hook_decoder_embed",
)  # fmt: skip
_ATTN, _CROSS_ATTN, _MLP = (
    tuple(f"{part}.hook_{leaf}" for leaf in leaves)
    for part, leaves in (
        ("attn", ("q", "k", "v")),
        ("cross_attn", ("q", "k", "v")),
        ("mlp", ("pre", "pre_linear")),
    )
)
_HEARING = tuple(f"cross_attn.hook_{leaf}" for leaf in ("k", "v", "k_input", "v_input"))
_INPUTS = tuple(f"{name}_input" for name in (*_ATTN, *_CROSS_ATTN))
_ROTATED = ("attn.hook_rot_q", "attn.hook_rot_k")
_READERS = (*_ATTN, *_CROSS_ATTN, *_INPUTS, *_ROTATED, "mlp.hook_in", *_MLP)
# Names of a part as a whole; as a receiver that means all that it reads.
_READ_BY = {
    "attn.hook_z": _ATTN,
    "hook_attn_out": _ATTN,
    "cross_attn.hook_z": _CROSS_ATTN,
    "hook_cross_attn_out": _CROSS_ATTN,
    "mlp.hook_post": _MLP,
    "hook_mlp_out": _MLP,
}


class PathError(HookedASRError):
    """Paths that the model does not have, or that cannot be patched as asked."""


@dataclass(frozen=True)
class Place:
    """A hook's place: its stack, its layer (None in front of and behind them), its name there."""

    stack: str
    layer: int | None
    name: str

    @classmethod
    def of(cls, hook: str) -> Place:
        """
        >>> Place.of("decoder.2.attn.hook_z")
        Place(stack='decoder', layer=2, name='attn.hook_z')
        """
        stack, _, rest = hook.partition(".")
        layer, _, name = rest.partition(".")
        if layer.isdigit():
            return cls(stack, int(layer), name)
        after = hook.startswith(("hook_decoder", "decoder", "unembed"))
        return cls("decoder" if after else "encoder", None, hook)


@dataclass(frozen=True)
class Ends:
    """The ends of paths in a model in which the parts in `freeze` give what they gave."""

    model: Any
    freeze: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [part for part in self.freeze if part not in PARTS]
        if unknown:
            raise PathError(f"what is frozen is of {', '.join(PARTS)}; got {unknown[0]!r}")

    @property
    def direct(self) -> bool:
        """Whether nothing but the stream leads from one part to another."""
        there = [part for part in PARTS if f"decoder.0.{PARTS[part]}" in self.model.hook_table]
        return set(there) <= set(self.freeze)

    @property
    def frozen(self) -> list[str]:
        """The hooks that are held at their clean values."""
        held = [PARTS[part] for part in self.freeze]
        return [name for name in self.model.hook_table if Place.of(name).name in held]

    def senders(self, site: Site) -> list[Site]:
        """The hooks that a sender means, one site each."""
        sites = self._each(site)
        for one in sites:
            if Place.of(one.hook).name not in _WRITERS:
                raise PathError(
                    f"{one.hook!r} writes nothing to a stream; a sender is a head "
                    "(decoder.2.attn.3), a part (decoder.2.mlp), a neuron (decoder.2.mlp.17), a "
                    "stream (decoder.2.resid_pre), hook_embed or hook_decoder_embed"
                )
        return sites

    def receivers(self, wanted: SiteLike | Sequence[SiteLike]) -> list[Site]:
        """The hooks that receivers mean, in the forward's order; "logits" means their own."""
        listed = [wanted] if isinstance(wanted, Site | str) else list(wanted)
        if not listed:
            raise PathError("there is no receiver: give one or more sites, or 'logits'")
        if listed == ["logits"]:
            return [Site(LOGITS)]
        if "logits" in listed:
            raise PathError(
                "patched logits would hide what other receivers do: 'logits' receive alone"
            )
        order = list(self.model.hook_table)
        sites = [
            read for one in listed for hook in self._each(as_site(one)) for read in self._read(hook)
        ]
        return sorted(sites, key=lambda site: order.index(site.hook))

    def lead(self, senders: list[Site], receivers: list[Site]) -> bool:
        """Whether a path leads from one of these to one of those, past what is frozen."""
        return any(self._leads(s.hook, r.hook) for s in senders for r in receivers)

    def _each(self, site: Site) -> list[Site]:
        return [replace(site, hook=name) for name in select(site.hook, self.model.hook_table)]

    def _read(self, site: Site) -> list[Site]:
        """What a receiver reads; itself, where it names that."""
        place = Place.of(site.hook)
        if place.name in _READERS:
            return [site]
        if place.name not in _READ_BY:
            raise PathError(
                f"{site.hook!r} reads no stream; a receiver is a head's hook_q, hook_k or hook_v, "
                "all three (decoder.2.attn.3), an MLP (decoder.2.mlp) or 'logits'"
            )
        hooks = [f"{place.stack}.{place.layer}.{name}" for name in _READ_BY[place.name]]
        hooks = [hook for hook in hooks if hook in self.model.hook_table]
        if not self._count_alike(site, hooks):
            raise PathError(
                f"{site}: keys and queries do not count the same heads or positions; receive at "
                f"each by name, as in Site({hooks[1]!r}, heads=…, positions=…)"
            )
        return [replace(site, hook=hook) for hook in hooks]

    def _count_alike(self, site: Site, hooks: list[str]) -> bool:
        """Whether a site's heads and positions mean the same at each of these hooks."""
        specs = [self.model.hook_table[hook] for hook in hooks]
        heads = {spec.axes[spec.head_axis] for spec in specs if spec.head_axis is not None}
        clocks = {spec.clock for spec in specs}
        said = site.positions is not None or site.seconds is not None
        return (site.heads is None or len(heads) <= 1) and (not said or len(clocks) == 1)

    def _leads(self, sender: str, receiver: str) -> bool:
        order = list(self.model.hook_table)
        here, there = order.index(sender), order.index(receiver)
        heard = receiver.endswith(_HEARING)
        from_encoder = Place.of(sender).stack == "encoder"
        if self.model.config.prefix or from_encoder == (Place.of(receiver).stack == "encoder"):
            return here < there and not heard
        if heard or not from_encoder:  # keys of cross-attention hear the encoder, and it alone
            return from_encoder
        first = order.index("decoder.0.cross_attn.hook_z")
        return first < there and "cross_attn" not in self.freeze


def as_site(site: SiteLike) -> Site:
    """A site, or what its short form says."""
    return Site.parse(site) if isinstance(site, str) else site
