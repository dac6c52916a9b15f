"""Keys and values of what was decoded so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.errors import HookedASRError

AnyKeys = Float[Tensor, "batch _ head d_head"]
KeysValues = tuple[AnyKeys, AnyKeys]


class KVCacheError(HookedASRError):
    """Tokens that do not continue what a cache holds."""


class LayerCache:
    """One decoder layer's keys and values: of the tokens so far, and of the audio.

    Room for `capacity` tokens is taken at once, so that a step writes and never moves.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._tokens: KeysValues | None = None
        self._audio: KeysValues | None = None
        self._joined = False

    @property
    def n_rows(self) -> int | None:
        """Rows of the batch; None before the first tokens."""
        return None if self._tokens is None else self._tokens[0].shape[0]

    @property
    def heard(self) -> bool:
        """Whether the audio's keys and values are kept."""
        return self._audio is not None

    @property
    def audio_kept(self) -> tuple[AnyKeys, ...]:
        """The audio's keys and values, where they are kept."""
        return self._audio or ()

    def extend(self, k: AnyKeys, v: AnyKeys) -> KeysValues:
        """Put new tokens behind those kept; returns all of them."""
        if k.requires_grad or self._joined:
            return self._join(k, v)
        if self._tokens is None:
            self._tokens = self._room(k), self._room(v)
        (keys, values), start = self._tokens, self.length
        self.length = end = start + k.shape[1]
        keys[:, start:end] = k
        values[:, start:end] = v
        return keys[:, :end], values[:, :end]

    def _room(self, like: AnyKeys) -> AnyKeys:
        rows, _, heads, width = like.shape
        return like.new_empty(rows, heads, self.capacity, width).transpose(1, 2)

    def _join(self, k: AnyKeys, v: AnyKeys) -> KeysValues:
        """As `extend`, but in new memory: gradients cannot follow what overwrites a buffer."""
        kept = [t[:, : self.length] for t in self._tokens or (k[:, :0], v[:, :0])]
        keys, values = (torch.cat(pair, dim=1) for pair in zip(kept, (k, v), strict=True))
        self._tokens, self.length, self._joined = (keys, values), keys.shape[1], True
        return keys, values

    def audio(self, compute: Callable[[], KeysValues]) -> KeysValues:
        """The audio's keys and values, computed once for each utterance."""
        if self._audio is None:
            k, v = compute()
            self._audio = _head_by_head(k), _head_by_head(v)
        return self._audio

    def view(self, n_rows: int, length: int) -> LayerCache:
        """The first rows up to a length, over the same memory: what it adds is added here too."""
        view = LayerCache(self.capacity)
        view.length, view._audio = length, self._audio
        if self._tokens is not None:
            view._tokens = self._tokens[0][:n_rows], self._tokens[1][:n_rows]
        if self._audio is not None and len(self._audio[0]) > 1:
            view._audio = self._audio[0][:n_rows], self._audio[1][:n_rows]
        return view

    def shared(self, length: int, audio: bool) -> LayerCache:
        """What rows that go on from here read, and none of them writes to."""
        return _SharedLayer(self, length, self._audio if audio else None)

    def reorder(self, rows: torch.Tensor, audio: bool = True) -> None:
        """Keep these rows of the batch, in this order; what one row is for all stays so.

        `audio`: whether the audio's keys and values move too, or are the same in their new rows.
        """
        for name in ("_tokens", "_audio") if audio else ("_tokens",):
            kept = getattr(self, name)
            shared = name == "_audio" and kept is not None and len(kept[0]) == 1
            if kept is not None and not shared:
                chosen = tuple(_head_by_head(t.index_select(0, rows)) for t in kept)
                setattr(self, name, chosen)


class _SharedLayer(LayerCache):
    """A layer's keys and values up to a length, as the past of any number of rows."""

    def __init__(self, layer: LayerCache, length: int, audio: KeysValues | None) -> None:
        super().__init__(layer.capacity)
        self.length = length
        self._tokens, self._audio = layer._tokens, audio

    @property
    def n_rows(self) -> None:
        """Any number of them."""

    def extend(self, k: AnyKeys, v: AnyKeys) -> KeysValues:
        if self._tokens is None or not self.length:
            return k, v
        keys, values = (
            torch.cat([past[:, : self.length].repeat(len(new) // len(past), 1, 1, 1), new], dim=1)
            for past, new in zip(self._tokens, (k, v), strict=True)
        )
        return keys, values

    def audio(self, compute: Callable[[], KeysValues]) -> KeysValues:
        return compute() if self._audio is None else self._audio


def _head_by_head(x: AnyKeys) -> AnyKeys:
    """The same tensor, laid out so that each head's positions lie side by side: faster to read."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


class KVCache:
    """Keys and values of a whole decoder, for up to `capacity` tokens."""

    def __init__(self, n_layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """Tokens decoded so far: the position of the next one."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    @property
    def heard(self) -> bool:
        """Whether the audio's keys and values are kept."""
        return self.layers[0].heard

    def check(self, n_layers: int, n_rows: int, n_new: int) -> None:
        """Raises `KVCacheError` unless `n_new` tokens in each of `n_rows` rows can follow."""
        first = self.layers[0]
        if len(self.layers) != n_layers:
            raise KVCacheError(f"the cache has {len(self.layers)} layers, the decoder {n_layers}")
        if first.n_rows not in (None, n_rows):
            raise KVCacheError(f"the cache holds {first.n_rows} rows; got tokens for {n_rows}")
        if first.length + n_new > first.capacity:
            raise KVCacheError(
                f"the cache has room for {first.capacity} tokens; got {first.length + n_new}"
            )

    def view(self, n_rows: int, length: int) -> KVCache:
        """The first rows up to a length, over the same memory."""
        view = KVCache(0, self.capacity)
        view.layers = [layer.view(n_rows, length) for layer in self.layers]
        return view

    def shared(self, length: int, audio: bool = True) -> KVCache:
        """The same up to a length, as the past of any number of rows, which write none of it.

        Row after row they stand for the batch that is kept: a multiple of its rows. `audio`:
        whether they read its audio too, or compute keys and values of their own.
        """
        shared = KVCache(0, self.capacity)
        shared.layers = [layer.shared(length, audio) for layer in self.layers]
        return shared

    def lengthened(self, layer: int, k: AnyKeys, v: AnyKeys) -> KVCache:
        """A shared past to run one layer on: there, these keys and values stand behind the rest."""
        past = self.layers[layer]
        longer = self.shared(self.length + k.shape[1], audio=self.heard)
        longer.layers[layer]._tokens = past.extend(k, v)
        return longer

    def reorder(self, rows: torch.Tensor, audio: bool = True) -> None:
        """Keep these rows of the batch, in this order (see `LayerCache.reorder`)."""
        for layer in self.layers:
            layer.reorder(rows, audio)
