"""Hooks that belong to one row of a batch each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.names import select

HookFunction = Callable[..., Tensor | None]


class RowHooks:
    """Many rows, each with hooks of its own, as one function on every hook that any of them has.

    `rows` says which row stands at each place of the batch that is running now. Each is as many
    entries of it as `sizes` has for its first axis ("batch", "clip"), one if not said. A batch of
    one row's size, where more rows have something to do, becomes as long as they are: they join.
    """

    brings_rows = True

    def __init__(
        self, model: Any, hooks: Sequence[Iterable[Any]], sizes: Mapping[str, int] | None = None
    ) -> None:
        self._model, self._sizes = model, sizes or {}
        self.rows = list(range(len(hooks)))
        self._functions: dict[str, dict[int, list[HookFunction]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for row, own in enumerate(hooks):
            for selector, fn in own:
                for name in select(selector, model.hook_table):
                    self._functions[name][row].append(fn)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attached to the model for the length of a block."""
        names = list(self._functions)
        with self._model.hooks([(names, self)] if names else []):
            yield

    def __call__(self, x: Float[Tensor, "..."], hook: Any) -> Tensor | None:
        functions = self._functions[hook.name]
        places = [(place, row) for place, row in enumerate(self.rows) if row in functions]
        if not places:
            return None
        size = self._sizes.get(hook.spec.axes[0], 1)
        edited = x.repeat(len(self.rows) * size // len(x), *[1] * (x.ndim - 1))
        for place, row in places:
            here = slice(place * size, (place + 1) * size)
            for fn in functions[row]:
                out = fn(edited[here], hook=hook)
                if out is not None:
                    edited[here] = hook.checked(out, edited[here], fn)
        return edited

    def by_position(self, row: int) -> bool:
        """Whether all that a row's hooks do at a position depends on that position alone."""
        return all(
            getattr(fn, "by_position", False)
            for functions in self._functions.values()
            for fn in functions.get(row, [])
        )

    def touches_audio(self, row: int) -> bool:
        """Whether a row's hooks change what is heard, and not only what is made of it."""
        return any(
            row in functions and self._model.hook_table[name].clock != "pos"
            for name, functions in self._functions.items()
        )
