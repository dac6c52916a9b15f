"""Queries and keys patched behind a softmax that is computed anew, not followed by its slope.

Source: "AtP*: An efficient and scalable method for localizing LLM behaviour to components" (2024),
section 3.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.interventions import Site
from hooked_asr.interventions.region import region
from hooked_asr.patching.gradients import Activations, GradientRun
from hooked_asr.patching.site_sums import SiteSums

_PARTNERS = {
    "hook_q": "hook_k",
    "hook_k": "hook_q",
    "hook_rot_q": "hook_rot_k",
    "hook_rot_k": "hook_rot_q",
}

Pattern = Float[Tensor, "batch head query key"]


@dataclass(frozen=True)
class _Side:
    """The queries or the keys of an attention: their hook, the other side's, the pattern's."""

    name: str

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_keys(self) -> bool:
        return self.leaf.endswith("k")

    @property
    def partner(self) -> str:
        return self._beside(_PARTNERS[self.leaf])

    @property
    def pattern(self) -> str:
        return self._beside("hook_pattern")

    def _beside(self, leaf: str) -> str:
        return f"{self.name.rpartition('.')[0]}.{leaf}"


def _sides(names: Sequence[str]) -> list[_Side]:
    return [_Side(name) for name in names if name.rpartition(".")[2] in _PARTNERS]


def beside(names: Sequence[str]) -> list[str]:
    """The hooks that the fix must see beside those of `names`: other sides, and patterns."""
    needed = [name for side in _sides(names) for name in (side.partner, side.pattern)]
    return [name for name in dict.fromkeys(needed) if name not in names]


class QueryKeyFix:
    """Estimates for sites in queries and keys: change of pattern times the pattern's gradient.

    One query changes one row of the pattern, so all of them are patched in one forward. Each set of
    positions of keys takes a forward of its own, which serves all layers and heads: with queries
    and keys put in place in each, no layer's pattern depends on what the others make of theirs.

    `names`: the hooks it speaks for; `key_patterns`: the patterns whose gradients `keys` takes.
    """

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        run: GradientRun,
        moves: Activations,
        sums: SiteSums,
    ) -> None:
        self._model, self._inputs, self._sums, self._moves = model, inputs, sums, moves
        self._hooks, self._clean = run.hooks, run.activations
        sides = _sides(list(moves))
        self.names = {side.name for side in sides}
        self.key_patterns = sorted({side.pattern for side in sides if side.is_keys})
        self._queries = [side for side in sides if not side.is_keys]
        self._changes = {
            name: change
            for leaf in ("hook_q", "hook_rot_q")
            for name, change in self._patched(
                {
                    side: self._clean[side.name] + moves[side.name]
                    for side in self._queries
                    if side.leaf == leaf
                }
            ).items()
        }

    def queries(self, gradients: Activations) -> Activations:
        """Estimates in the shape of the queries, `[1 pos head 1]`."""
        return {
            side.name: _dot(self._changes[side.name], gradients[side.pattern], (0, 3)).T[
                None, ..., None
            ]
            for side in self._queries
        }

    def keys(
        self, gradients: Sequence[Activations], progress: bool = True
    ) -> Float[Tensor, "gradient site"]:
        """The sum over keys in each site, by each of several gradients of the patterns."""
        sums = torch.zeros(len(gradients), len(self._sums.sites), dtype=torch.float64)
        groups = self._groups_of_sites()
        bar = tqdm(groups.items(), desc="keys", unit="forward", disable=not progress or not groups)
        for (leaf, *where), sites in bar:
            for name, by_head in self._key_heads(leaf, where, sites, gradients).items():
                for i in sites:
                    if name in self._sums.names[i]:
                        heads = self._sums.sites[i].heads
                        mine = by_head if heads is None else by_head[:, list(heads)]
                        sums[:, i] += mine.sum(1)
        return sums

    def _groups_of_sites(self) -> dict[tuple[Any, ...], list[int]]:
        """Sites in keys, by the kind of key and their positions."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, (site, names) in enumerate(zip(self._sums.sites, self._sums.names, strict=True)):
            for leaf in sorted({side.leaf for side in _sides(names) if side.is_keys}):
                groups[leaf, site.positions, site.seconds].append(i)
        return groups

    def _key_heads(
        self,
        leaf: str,
        where: Sequence[Any],
        sites: Sequence[int],
        gradients: Sequence[Activations],
    ) -> dict[str, Float[Tensor, "gradient kv_head"]]:
        """What patching the keys at some positions does, by hook, gradient and head."""
        patched = {}
        for side in _sides(sorted({name for i in sites for name in self._sums.names[i]})):
            if side.leaf == leaf:
                self._check_heads(side.name, sites)
                patched[side] = self._moved(side.name, where)
        return {
            name: torch.stack(
                [_dot(change, one[_Side(name).pattern], (0, 2, 3)) for one in gradients]
            )
            .unflatten(1, (self._clean[name].shape[2], -1))
            .sum(2)
            for name, change in self._patched(patched).items()
        }

    def _moved(self, name: str, where: Sequence[Any]) -> Tensor:
        """The clean keys, patched at some positions or seconds."""
        keys = self._clean[name].clone()
        there = region(Site(name, None, where[0], where[1]), self._hooks[name], keys)
        if there is not None:
            keys[there.local] += self._moves[name][there.local]
        return keys

    def _check_heads(self, name: str, sites: Sequence[int]) -> None:
        for i in sites:
            if name in self._sums.names[i]:
                region(self._sums.sites[i], self._hooks[name], self._clean[name])

    def _patched(self, sides: Mapping[_Side, Tensor]) -> dict[str, Pattern]:
        """How patterns change where one side is as given and the other is clean."""
        if not sides:
            return {}
        values = {side.name: value for side, value in sides.items()}
        values |= {side.partner: self._clean[side.partner] for side in sides}
        patterns: Activations = {}

        def put(x: Tensor, hook: Any) -> Tensor:
            return values[hook.name]

        def keep(x: Tensor, hook: Any) -> None:
            patterns[hook.name] = x

        hooks = [(list(values), put), ([side.pattern for side in sides], keep)]
        with torch.no_grad():
            self._model.run_with_hooks(fwd_hooks=hooks, **self._inputs)
        return {side.name: patterns[side.pattern] - self._clean[side.pattern] for side in sides}


def _dot(change: Pattern, gradient: Pattern, axes: tuple[int, ...]) -> Float[Tensor, "..."]:
    """Their product, summed over some axes; on the CPU."""
    exact = torch.promote_types(change.dtype, torch.float32)
    return (change.to(exact) * gradient.to(exact)).sum(axes).cpu().double()
