"""Running a circuit: every edge outside of it carries another run's value of its sender."""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_asr.hooks import Hooks
from hooked_asr.patching.circuits import Circuit, CircuitError
from hooked_asr.patching.graph import Graph, Read
from hooked_asr.patching.graph_runs import (
    Received,
    Recorder,
    Recording,
    norm_of,
    placed,
    record,
    run_pair,
    sent,
    wide,
)
from hooked_asr.patching.operations import Inputs, Run
from hooked_asr.shapes import Logits

ABLATIONS = ("reference", "zero", "mean")


@torch.no_grad()
def run_circuit(
    model: Any, circuit: Circuit, *, clean: Run, reference: Run, ablation: str = "reference"
) -> Logits:
    """Logits `[batch pos d_vocab]` of the circuit alone, on the clean run, in one forward.

    Each receiver reads what the senders of its edges inside the circuit write in this very run, and
    for all others what they wrote in the reference run ("reference"), nothing ("zero"), or the mean
    over clips and positions of what they wrote there ("mean"). Output biases belong to no edge.

    Raises `EdgeError` for runs that do not fit each other, `CircuitError` for another ablation or
    the circuit of another model.

    Source: "Have Faith in Faithfulness" (2024), section 2.
    """
    inputs, others = run_pair(model, clean, reference)
    outside = Outside(model, circuit.graph, record(model, circuit.graph, others)[1], others)
    return outside.ablated(ablation).run(circuit, inputs)


class Outside:
    """What senders outside of a circuit write, and the streams that are made of it alone."""

    def __init__(self, model: Any, graph: Graph, recording: Recording, inputs: Inputs) -> None:
        self._model, self._graph, self._inputs = model, graph, inputs
        self._recording = recording

    def ablated(self, ablation: str) -> Outside:
        """The same with each sender's values set to zero or to their mean.

        Raises `CircuitError` for an ablation that there is not.
        """
        if ablation not in ABLATIONS:
            raise CircuitError(f"ablations are {', '.join(map(repr, ABLATIONS))}; got {ablation!r}")
        if ablation == "reference":
            return self
        old, places = self._recording.writes, placed(self._model, self._inputs)
        writes = {
            part: x * 0 if ablation == "zero" else _mean(x, places.get(part))
            for part, x in old.items()
        }
        # A stream is the sum of what was written, and of biases, which stay.
        changes = [
            sent(self._model, write, wide(writes[write.part]) - wide(old[write.part])).sum(-2)
            for write in self._graph.writes
        ]
        streams = {
            read.stream: wide(self._recording.streams[read.stream])
            + torch.stack([changes[source] for source in read.sources]).sum(0)
            for read in self._graph.reads
        }
        return Outside(self._model, self._graph, Recording(writes, streams), self._inputs)

    def run(self, circuit: Circuit, inputs: Inputs) -> Logits:
        """The circuit's logits; a receiver that keeps all its edges is left to the plain forward.

        Raises `CircuitError` for the circuit of another model.
        """
        if circuit.graph != self._graph:
            raise CircuitError("the circuit is of another model's graph")
        recorder = Recorder(self._model, self._graph, inputs)
        hooks: Hooks = [
            *recorder.hooks,
            *(
                (read.hook, self._reader(read, circuit.kept[rows], recorder))
                for read, rows in zip(self._graph.reads, self._graph.rows, strict=True)
                if not torch.equal(circuit.kept[rows], self._graph.edges[rows])
            ),
        ]
        return self._model.run_with_hooks(**inputs, fwd_hooks=hooks)

    def _reader(self, read: Read, kept: Bool[Tensor, "receiver sender"], recorder: Recorder) -> Any:
        """A hook function that gives each receiver of a read its own stream, normed."""

        def reads(x: Tensor, hook: Any) -> Tensor:
            stream = self._received(read, kept, recorder.recording).to(x.dtype)
            if read.norm is not None:
                stream = norm_of(self._model, read)(stream)
            return stream.reshape(x.shape)

        return reads

    def _received(
        self, read: Read, kept: Bool[Tensor, "receiver sender"], now: Recording
    ) -> Received:
        """The ablated stream, and for each kept edge what its sender writes now in place of it."""
        stream = wide(self._recording.streams[read.stream])[..., None, :]
        for source in read.sources:
            write = self._graph.writes[source]
            mine = kept[:, self._graph.columns[source]]
            if mine.any():
                change = wide(now.writes[write.part]) - wide(self._recording.writes[write.part])
                stream = stream + _gathered(sent(self._model, write, change), mine)
        return stream.expand(-1, -1, len(kept), -1)


def _gathered(changes: Tensor, kept: Bool[Tensor, "receiver sender"]) -> Received:
    return einsum(
        changes,
        kept.to(changes.device, changes.dtype),
        "batch pos sender d, receiver sender -> batch pos receiver d",
    )


def _mean(
    written: Float[Tensor, "batch pos ..."], where: Bool[Tensor, "batch pos 1"] | None
) -> Float[Tensor, "batch pos ..."]:
    """Its mean over clips and positions, at each of those where it is written."""
    if where is None:
        return written.mean((0, 1), keepdim=True).expand_as(written)
    return where * written.sum((0, 1), keepdim=True) / where.sum().clamp(min=1)
