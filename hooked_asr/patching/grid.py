"""Which places a sweep visits: grids of sites with named axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import SupportsIndex

from hooked_asr.config import STACKS, ModelConfig
from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import PARTS, Site
from hooked_asr.interventions.site import as_numbers, format_numbers
from hooked_asr.names import hook_table

Positions = str | Sequence[SupportsIndex | Sequence[SupportsIndex]] | None

_COMPONENTS = ("attn", "cross_attn", "mlp", "resid_post")
_ATTENTIONS = ("encoder.attn", "decoder.attn", "decoder.cross_attn")
_EACH = "each"


class SitesError(HookedASRError):
    """A grid of sites that the model has no room for."""


@dataclass(frozen=True)
class Grid:
    """Sites in the order of a row-major array over `axes`, first to last."""

    axes: dict[str, list[str | int]]
    sites: list[Site]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes.values()))


@dataclass(frozen=True)
class Sites:
    """A wish for sites, which a model's config turns into a grid.

    `parts`: what of each layer, by default all that write to the stream; with `attention`, the
    sites are its heads.
    """

    stack: str
    parts: tuple[str, ...] = ()
    attention: str | None = None
    positions: Positions = None

    def grid(self, config: ModelConfig, n_pos: int) -> Grid:
        """The grid in a model, for an input of `n_pos` tokens.

        Raises `SitesError` for parts or positions that the model does not have.
        """
        self.check(config)
        stack = config.stack(self.stack)
        groups = self._groups(config.encoder.n_ctx if self.stack == "encoder" else n_pos)
        axes: dict[str, list[str | int]] = {"layer": list(range(stack.n_layers))}
        if self.attention:
            axes["head"] = list(range(stack.n_heads))
        else:
            axes["component"] = list(self.parts or self._parts_there(config, _COMPONENTS))
        if groups is not None:
            axes["position"] = [_label(group) for group in groups]
        within = list(axes.values())[1]
        everywhere: list[tuple[int, ...] | None] = [None]
        sites = [
            self._site(layer, one, group)
            for layer, one, group in product(axes["layer"], within, groups or everywhere)
        ]
        return Grid(axes, sites)

    def check(self, config: ModelConfig) -> None:
        """Raises `SitesError` for parts that the model does not have; makes no site."""
        if self.attention and not _has(config, self.stack, self.attention):
            raise SitesError(
                f"this model's {self.stack} has no {self.attention}; heads are those of "
                + " or ".join(repr(part) for part in attentions(config))
            )
        there = self._parts_there(config, PARTS)
        unknown = [part for part in self.parts if part not in there]
        if unknown:
            raise SitesError(
                f"this model's {self.stack} has no part {unknown[0]!r}; "
                f"there are {', '.join(there)}"
            )

    def _parts_there(self, config: ModelConfig, parts: Iterable[str]) -> list[str]:
        return [part for part in parts if _has(config, self.stack, part)]

    def _site(self, layer: str | int, one: str | int, positions: tuple[int, ...] | None) -> Site:
        if self.attention:
            return Site(f"{self.stack}.{layer}.{self.attention}.hook_z", (int(one),), positions)
        return Site(f"{self.stack}.{layer}.{PARTS[str(one)]}", None, positions)

    def _groups(self, n_pos: int) -> list[tuple[int, ...]] | None:
        """Each entry's positions; None where every site means all of them at once."""
        if self.positions is None:
            return None
        if isinstance(self.positions, str):
            return [(position,) for position in range(n_pos)]
        groups = [as_numbers("positions", one) or () for one in self.positions]
        beyond = [p for group in groups for p in group if p >= n_pos]
        if beyond:
            raise SitesError(f"this input has positions 0 to {n_pos - 1}; asked for {beyond[0]}")
        return groups


def attentions(config: ModelConfig) -> list[str]:
    """The attentions that a model has, as `heads` takes them; the last one hears the audio."""
    return [part for part in _ATTENTIONS if _has(config, *part.split("."))]


def heads(part: str = "decoder.cross_attn", positions: Positions = None) -> Sites:
    """Every head of an attention: "encoder.attn", "decoder.attn" or "decoder.cross_attn".

    `positions`: None for all of them at once, "each" for one at a time, or a list of positions and
    spans (encoder positions are 20 ms long). Axes: layer, head, and position where asked for.
    """
    stack, _, attention = part.partition(".")
    if part not in _ATTENTIONS:
        raise SitesError(
            "heads are those of 'encoder.attn', 'decoder.attn' or 'decoder.cross_attn'; "
            f"got {part!r}"
        )
    return Sites(stack, attention=attention, positions=_checked(positions))


def components(
    stack: str = "decoder", parts: str | Sequence[str] | None = None, positions: Positions = None
) -> Sites:
    """What each layer's parts write to the stream, and the stream itself.

    `parts` are one or more of attn, cross_attn (decoder), mlp, resid_pre, resid_mid,
    resid_mid_cross (decoder) and resid_post. Axes: layer, component, and position where asked for
    (see `heads`).
    """
    if stack not in STACKS:
        raise SitesError(f"no stack {stack!r}; there are 'encoder' and 'decoder'")
    chosen = (parts,) if isinstance(parts, str) else tuple(parts or ())
    known = [part for part in PARTS if stack == "decoder" or "cross" not in part]
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise SitesError(f"the {stack} has no part {unknown[0]!r}; there are {', '.join(known)}")
    return Sites(stack, chosen, positions=_checked(positions))


def parse_sites(text: str) -> Sites:
    """Sites as the command line writes them.

    `decoder.cross_attn` (its heads), `decoder` (its components), `decoder.mlp` (one component in
    every layer); `@each` behind it for one position at a time.
    """
    path, at, positions = text.partition("@")
    if at and positions != _EACH:
        raise SitesError(f"behind @ stands {_EACH!r}, for each position; got {positions!r}")
    stack, dot, part = path.partition(".")
    if part.endswith("attn"):
        return heads(path, positions or None)
    return components(stack, part if dot else None, positions or None)


def _has(config: ModelConfig, stack: str, part: str) -> bool:
    return f"{stack}.0.{PARTS[part]}" in hook_table(config)


def _checked(positions: Positions) -> Positions:
    if isinstance(positions, str) and positions != _EACH:
        raise SitesError(f"positions are None, {_EACH!r} or a list; got {positions!r}")
    if positions is not None and not len(positions):
        raise SitesError("the list of positions is empty")
    return positions


def _label(group: tuple[int, ...]) -> str | int:
    return group[0] if len(group) == 1 else format_numbers(group)
