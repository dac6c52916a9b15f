"""Which places a sweep visits: grids of sites with named axes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, SupportsFloat, SupportsIndex

from hooked_asr.config import STACKS, ModelConfig
from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import PARTS, Site
from hooked_asr.interventions.site import Seconds, as_numbers, format_numbers, format_seconds
from hooked_asr.names import hook_table
from hooked_asr.timing import FRAMES_PER_SECOND

Positions = str | Sequence[SupportsIndex | Sequence[SupportsIndex]] | None
Spans = SupportsFloat | Sequence[Sequence[SupportsFloat]] | None

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
    sites are its heads, with `of_neurons` those of its MLP. `layers`, `units` (heads or neurons):
    which of them, all if not said.
    """

    stack: str
    parts: tuple[str, ...] = ()
    attention: str | None = None
    of_neurons: bool = False
    layers: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    positions: Positions = None
    seconds: Spans = None

    def grid(self, config: ModelConfig, n_pos: int) -> Grid:
        """The grid in a model, for an input of `n_pos` tokens.

        Raises `SitesError` for parts, layers or positions that the model does not have.
        """
        self.check(config)
        stack = config.stack(self.stack)
        layers = _chosen("layers", self.layers, stack.n_layers)
        unit, units = self._within(config)
        name, places = self._places(config, n_pos)
        axes: dict[str, list[str | int]] = {"layer": list(layers), unit: units}
        if name:
            axes[name] = [label for label, _ in places]
        sites = [
            self._site(layer, one, where)
            for layer, one, (_, where) in product(layers, units, places)
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

    @property
    def name(self) -> str:
        """As `parse_sites` reads it, as far as that goes."""
        part = "neurons" if self.of_neurons else self.attention or "+".join(self.parts)
        return ".".join(filter(None, (self.stack, part)))

    def _parts_there(self, config: ModelConfig, parts: Iterable[str]) -> list[str]:
        return [part for part in parts if _has(config, self.stack, part)]

    def _within(self, config: ModelConfig) -> tuple[str, list[str | int]]:
        """What of each layer: the name of the axis, and its labels."""
        stack = config.stack(self.stack)
        if self.attention:
            return "head", list(_chosen("heads", self.units, stack.n_heads))
        if self.of_neurons:
            return "neuron", list(_chosen("neurons", self.units, stack.d_mlp))
        return "component", list(self.parts or self._parts_there(config, _COMPONENTS))

    def _site(self, layer: int, one: str | int, where: dict[str, Any]) -> Site:
        block = f"{self.stack}.{layer}"
        if self.attention:
            return Site(f"{block}.{self.attention}.hook_z", int(one), **where)
        if self.of_neurons:
            return Site(f"{block}.mlp.hook_post", neurons=int(one), **where)
        return Site(f"{block}.{PARTS[str(one)]}", **where)

    def _places(
        self, config: ModelConfig, n_pos: int
    ) -> tuple[str | None, list[tuple[str | int, dict[str, Any]]]]:
        """Where on each layer: the name of the axis, and each entry's label and place."""
        if self.seconds is not None:
            spans = _spans(self.seconds, config.n_frames / FRAMES_PER_SECOND)
            return "seconds", [(_moments(span), {"seconds": span}) for span in spans]
        if self.positions is None:
            return None, [("", {})]
        n = config.encoder.n_ctx if self.stack == "encoder" else n_pos
        return "position", [(_label(one), {"positions": one}) for one in self._groups(n)]

    def _groups(self, n_pos: int) -> list[tuple[int, ...]]:
        if isinstance(self.positions, str):
            return [(position,) for position in range(n_pos)]
        groups = [as_numbers("positions", one) or () for one in self.positions or ()]
        beyond = [p for group in groups for p in group if p >= n_pos]
        if beyond:
            raise SitesError(f"this input has positions 0 to {n_pos - 1}; asked for {beyond[0]}")
        return groups


AnySites = Sites | Sequence[Sites | Site | str]  # a list is of one kind, which `as_grids` checks


def as_grids(sites: AnySites, config: ModelConfig, n_pos: int, name: str) -> list[Grid]:
    """A grid for each of several wishes, or the one of a wish or of single sites (see `as_grid`).

    Raises `SitesError` as `as_grid`.
    """
    if isinstance(sites, Sites):
        return [as_grid(sites, config, n_pos, name)]
    wishes = [one for one in sites if isinstance(one, Sites)]
    single = [one for one in sites if not isinstance(one, Sites)]
    if wishes and single:
        raise SitesError(
            "sites are those of `heads`, `neurons` or `components`, a list of these, or a list of "
            "single sites; got a mixture"
        )
    if wishes:
        return [as_grid(one, config, n_pos, name) for one in wishes]
    return [as_grid(single, config, n_pos, name)]


def are_several(sites: AnySites) -> bool:
    """Whether it is a list of wishes: one grid each."""
    if isinstance(sites, Sites) or not len(sites):
        return False
    return all(isinstance(one, Sites) for one in sites)


def as_grid(
    sites: Sites | Sequence[Site | str], config: ModelConfig, n_pos: int, name: str
) -> Grid:
    """The grid of a wish, or of single sites in a row, named after what is done there.

    Raises `SitesError` where there are none.
    """
    if isinstance(sites, Sites):
        return sites.grid(config, n_pos)
    single = [one if isinstance(one, Site) else Site.parse(one) for one in sites]
    if not single:
        raise SitesError("there are no sites: give heads(), components(), neurons(), or a list")
    return Grid({"operation": [name], "site": list(map(str, single))}, single)


def attentions(config: ModelConfig) -> list[str]:
    """The attentions that a model has, as `heads` takes them; the last one hears the audio."""
    return [part for part in _ATTENTIONS if _has(config, *part.split("."))]


def heads(
    part: str = "decoder.cross_attn",
    positions: Positions = None,
    *,
    seconds: Spans = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Sites:
    """Every head of an attention: "encoder.attn", "decoder.attn" or "decoder.cross_attn".

    - `positions`: None for all of them at once, "each" for one at a time, or a list of positions
      and spans (encoder positions are 20 ms long).
    - `seconds`, in the encoder: one entry for each so many seconds of the window, or a list of
      spans (from, to).
    - `layers`, `heads`: which of them, all if not said.

    Axes: layer, head, and position or seconds where asked for.
    """
    stack, _, attention = part.partition(".")
    if part not in _ATTENTIONS:
        raise SitesError(
            "heads are those of 'encoder.attn', 'decoder.attn' or 'decoder.cross_attn'; "
            f"got {part!r}"
        )
    return _wish(
        stack, positions, seconds, attention=attention, layers=_tuple(layers), units=_tuple(heads)
    )


def neurons(
    stack: str = "decoder",
    positions: Positions = None,
    *,
    seconds: Spans = None,
    layers: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
) -> Sites:
    """Single neurons of a stack's MLPs, behind the activation. Axes: layer, neuron.

    For `positions`, `seconds` and `layers` see `heads`.
    """
    return _wish(
        stack, positions, seconds, of_neurons=True, layers=_tuple(layers), units=_tuple(neurons)
    )


def components(
    stack: str = "decoder",
    parts: str | Sequence[str] | None = None,
    positions: Positions = None,
    *,
    seconds: Spans = None,
    layers: Sequence[int] | None = None,
) -> Sites:
    """What each layer's parts write to the stream, and the stream itself.

    `parts` are one or more of attn, cross_attn (decoder), mlp, resid_pre, resid_mid,
    resid_mid_cross (decoder) and resid_post. Axes: layer, component, and position or seconds where
    asked for (see `heads`).
    """
    chosen = (parts,) if isinstance(parts, str) else tuple(parts or ())
    wish = _wish(stack, positions, seconds, parts=chosen, layers=_tuple(layers))
    known = [part for part in PARTS if stack == "decoder" or "cross" not in part]
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise SitesError(f"the {stack} has no part {unknown[0]!r}; there are {', '.join(known)}")
    return wish


def parse_sites(text: str) -> Sites:
    """Sites as the command line writes them.

    `decoder.cross_attn` (its heads), `decoder` (its components), `decoder.mlp` (one component in
    every layer), `decoder.neurons`; `@each` behind it for one position at a time, `@0.5s` for each
    half second of the sound.
    """
    path, at, where = text.partition("@")
    step = re.fullmatch(r"(\d+(?:\.\d+)?)s", where)
    if at and where != _EACH and not step:
        raise SitesError(
            f"behind @ stands {_EACH!r}, for each position, or a time as in 0.5s; got {where!r}"
        )
    places: dict[str, Any] = {"positions": where or None}
    if step:
        places = {"seconds": float(step[1])}
    stack, dot, part = path.partition(".")
    if part.endswith("attn"):
        return heads(path, **places)
    if part == "neurons":
        return neurons(stack, **places)
    return components(stack, part if dot else None, **places)


def _wish(stack: str, positions: Positions, seconds: Spans, **which: Any) -> Sites:
    if stack not in STACKS:
        raise SitesError(f"no stack {stack!r}; there are 'encoder' and 'decoder'")
    if seconds is not None:
        if stack == "decoder":
            raise SitesError("the decoder's positions are tokens, which no clock tells seconds of")
        if positions is not None:
            raise SitesError("say which positions or which seconds, not both")
    return Sites(stack, positions=_checked(positions), seconds=seconds, **which)


def _has(config: ModelConfig, stack: str, part: str) -> bool:
    return f"{stack}.0.{PARTS[part]}" in hook_table(config)


def _tuple(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers)


def _chosen(what: str, numbers: tuple[int, ...] | None, n: int) -> tuple[int, ...]:
    """Those asked for, all if not said."""
    if numbers is None:
        return tuple(range(n))
    checked = as_numbers(what, numbers) or ()
    if max(checked) >= n:
        raise SitesError(f"there are {what} 0 to {n - 1}; asked for {max(checked)}")
    return checked


def _checked(positions: Positions) -> Positions:
    if isinstance(positions, str) and positions != _EACH:
        raise SitesError(f"positions are None, {_EACH!r} or a list; got {positions!r}")
    if positions is not None and not len(positions):
        raise SitesError("the list of positions is empty")
    return positions


def _spans(seconds: Spans, window: float) -> list[Seconds]:
    """Spans of a window, one behind the other where a length is given."""
    if not isinstance(seconds, SupportsFloat):
        return [(float(start), float(stop)) for start, stop in seconds or ()]
    seconds = float(seconds)
    if not 0 < seconds <= window:
        raise SitesError(f"a step is more than 0 and at most {window:g} s; got {seconds:g}")
    n = math.ceil(window / seconds - 1e-6)
    return [(round(i * seconds, 6), round(min((i + 1) * seconds, window), 6)) for i in range(n)]


def _moments(span: Seconds) -> str:
    return "-".join(map(format_seconds, span)) + " s"


def _label(group: tuple[int, ...]) -> str | int:
    return group[0] if len(group) == 1 else format_numbers(group)
