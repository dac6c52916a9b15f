"""Runs of a model, seen as its graph: what was written, what was read, and gradients there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.hooks import Hooks
from hooked_asr.patching.engine.measure import AnyMetric
from hooked_asr.patching.graph import Graph, Read, Write
from hooked_asr.patching.operations import Inputs, Run, as_inputs
from hooked_asr.shapes import Logits


class EdgeError(HookedASRError):
    """Runs, or a metric, with which edges cannot be measured."""


Sent = Float[Tensor, "#batch #pos sender d_model"]
Received = Float[Tensor, "#batch #pos receiver d_model"]


@dataclass
class Recording:
    """What each part wrote in a run, by the part's name, and each stream, by its hook's.

    An attention's writes are its `z` `[batch pos head d_head]`, any other's `[batch pos d_model]`.
    """

    writes: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)


class Recorder:
    """Records a run of `inputs`, by hooks that change nothing."""

    def __init__(self, model: Any, graph: Graph, inputs: Inputs) -> None:
        self.recording = Recording()
        self._writes: dict[str, list[Write]] = {}
        for write in graph.writes:
            self._writes.setdefault(write.hook, []).append(write)
        self._streams = {read.stream for read in graph.reads}
        self._places = placed(model, inputs)

    @property
    def hooks(self) -> Hooks:
        return [([*{**self._writes, **dict.fromkeys(self._streams)}], self._keep)]

    def _keep(self, x: Tensor, hook: Any) -> None:
        x = x.detach()
        for write in self._writes.get(hook.name, ()):
            where = self._places.get(write.part)
            self.recording.writes[write.part] = x if where is None else x * where
        if hook.name in self._streams:
            self.recording.streams[hook.name] = x


def record(model: Any, graph: Graph, inputs: Inputs) -> tuple[Logits, Recording]:
    """The logits of a plain run, and what it wrote."""
    recorder = Recorder(model, graph, inputs)
    logits = model.run_with_hooks(**inputs, fwd_hooks=recorder.hooks)
    return logits, recorder.recording


def placed(model: Any, inputs: Inputs) -> dict[str, Bool[Tensor, "batch pos 1"]]:
    """Where in the decoder's stream each of two inputs stands, in a model that has two there."""
    prefix = model.config.prefix
    if prefix is None:
        return {}
    heard = (inputs["tokens"] == prefix.audio_token).to(model.device)[..., None]
    return {"audio": heard, "decoder.embed": ~heard}


def sent(model: Any, write: Write, written: Tensor) -> Sent:
    """What each of a write's senders adds to the stream; output biases are no sender's."""
    if write.heads is None:
        return written[..., None, :]
    W_O = model.get_submodule(write.part).W_O.detach().to(written.dtype)
    return einsum(
        written, W_O, "batch pos sender d_head, sender d_head d_model -> batch pos sender d_model"
    )


def norm_of(model: Any, read: Read) -> Any:
    """The norm through which a stream is read."""
    return model.get_submodule(read.norm)


def wide(x: Tensor) -> Tensor:
    """At least float32: differences of halves are lost where they are small."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def run_pair(model: Any, clean: Run, reference: Run) -> tuple[Inputs, Inputs]:
    """Two runs by their inputs' names.

    Raises `EdgeError` where they do not answer to each other, position for position.
    """
    inputs, others = as_inputs(clean), as_inputs(reference)
    for name, run in (("clean", inputs), ("reference", others)):
        if run.get("mel") is None or run.get("tokens") is None:
            raise EdgeError(
                f"edges lead from the encoder's input to the logits: {name} must hold mel and "
                f"tokens; it has {', '.join(run) or 'nothing'}"
            )
    for name in ("mel", "tokens"):
        if inputs[name].shape != others[name].shape:
            raise EdgeError(
                f"{name} are {list(inputs[name].shape)} in clean and {list(others[name].shape)} "
                "in reference: positions must answer to each other. Teacher-force both with the "
                "same text"
            )
    ours, theirs = placed(model, inputs), placed(model, others)
    if any(not torch.equal(ours[part], theirs[part]) for part in ours):
        raise EdgeError("the audio stands at other positions in clean than in reference")
    return inputs, others


def mean_of(metric: AnyMetric, logits: Tensor) -> Tensor:
    """The metric's mean over clips."""
    value = torch.as_tensor(metric(logits))
    return (value if value.is_floating_point() else value.float()).mean()
