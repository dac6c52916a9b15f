"""Steps of decoding as a straight line: recorded from the forward once, then replayed.

The forward decides again at each step what it decided at the last one. Where a step is like one
before it (as many rows, the same hook points listened to), the operations that the forward came
to are run by themselves: the same ones, in the same order, on this step's numbers, so that nothing
changes but the time. A hook point that is listened to is part of the line, and its functions are
called as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.hooks import HookPoint
from hooked_asr.shapes import Tokens
from hooked_asr.tape import Recorder, Tape

_MOST = 32  # tapes kept of a model: each is a few hundred lines of source
_KNOWN = ("hooked_asr", "torch", "transformers")  # whose modules compute, and do nothing else

_Kind = tuple[Any, ...]  # of a step: what the forward's decisions follow from


class _Tapes(dict[_Kind, Tape | None]):
    """The tapes of one model while it is laid out like this; None for a step that has none."""

    def __init__(self, layout: Sequence[Any], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layout = layout
        self.possible = all(type(module).__module__.split(".")[0] in _KNOWN for module in modules)

    def keep(self, kind: _Kind, tape: Tape | None) -> None:
        if len(self) == _MOST:
            del self[next(iter(self))]
        self[kind] = tape


_tapes: WeakKeyDictionary[nn.Module, _Tapes] = WeakKeyDictionary()


class Replay:
    """The steps of one decoding behind its prompt, each of one new token in every row.

    As `model.decode(tokens, past=past)`, bit for bit. Modules that are not ours, gradients and
    autocast are left to it (`possible` is False), and so are lazy hooks that are listened to. What
    a function attaches in the middle of a step is heard from the next one on.
    """

    def __init__(self, model: Any, past: KVCache) -> None:
        self._model, self._past = model, past
        modules = _behind_the_encoder(model)
        stores = (store for module in modules for store in (module._parameters, module._buffers))
        self._weights = [one for store in stores for one in store.values() if one is not None]
        layout = _layout(modules, self._weights)
        if model not in _tapes or _tapes[model].layout != layout:
            _tapes[model] = _Tapes(layout, [model, *modules])
        self._tapes = _tapes[model]
        automatic = torch.is_grad_enabled() or torch.is_autocast_enabled(model.device.type)
        self.possible = self._tapes.possible and not automatic and not any(map(_hooked, modules))
        self._points = [point for point in modules if isinstance(point, HookPoint)]
        self._heard: tuple[HookPoint, ...] = ()
        self._changes = -1
        self._places = torch.arange(past.capacity, device=model.device)[None]

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch 1 d_vocab"]:
        kind = self._kind(tokens)
        if kind not in self._tapes:
            return self._record(kind, tokens)
        tape = self._tapes[kind]
        if tape is None:
            return self._decode(tokens)
        with self._model.clock.at(self._past.length):
            return tape(*self._inputs(tokens))

    def _kind(self, tokens: Tokens) -> _Kind:
        clock = self._model.clock
        if clock.changes != self._changes:
            self._changes = clock.changes
            self._heard = tuple(point for point in self._points if point.active)
        return (len(tokens), *map(len, self._past.layers[0].audio_kept), *self._heard)

    def _inputs(self, tokens: Tokens) -> list[Any]:
        """What is another in each step, or may be in the next decoding."""
        here, layers = self._past.length, self._past.layers
        audio = (kept for layer in layers for kept in layer.audio_kept)
        return [self._places[:, here : here + 1], tokens, *layers, *audio, *self._weights]

    def _decode(self, tokens: Tokens, **inputs: Any) -> Float[Tensor, "batch 1 d_vocab"]:
        logits: Tensor = self._model.decode(tokens, past=self._past, **inputs)
        return logits

    def _record(self, kind: _Kind, tokens: Tokens) -> Float[Tensor, "batch 1 d_vocab"]:
        """Take the step as ever, and keep what it came to."""
        inputs = self._inputs(tokens)
        recorder = Recorder(inputs)
        with ExitStack() as around:
            for layer in self._past.layers:
                around.enter_context(recorder.as_one(layer, "extend"))
            for point in self._points:  # all: a function may attach another one on its way
                around.enter_context(recorder.as_one(point, "forward"))
                around.enter_context(recorder.spoiled_by(point, "watch"))
            around.enter_context(recorder)
            logits = self._decode(tokens, position_ids=inputs[0])
        self._tapes.keep(kind, recorder.tape(logits))
        return logits


def _behind_the_encoder(model: nn.Module) -> list[nn.Module]:
    """All modules that a step may pass (and without the model, which would never be freed)."""
    parts = [part for name, part in model.named_children() if name != "encoder"]
    return [module for part in parts for module in part.modules()]


def _hooked(module: nn.Module) -> bool:
    """Whether another's function is called with a module, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _layout(modules: Sequence[nn.Module], weights: Sequence[Tensor]) -> list[Any]:
    """What a model is made of: modules, and kinds of weights, and which of these are one."""
    first: dict[int, int] = {}
    ties = [first.setdefault(id(weight), i) for i, weight in enumerate(weights)]
    kinds = [(weight.shape, weight.dtype, weight.device) for weight in weights]
    return [*modules, *ties, *kinds]
