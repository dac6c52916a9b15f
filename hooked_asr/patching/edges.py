"""Edge attribution patching: how much each edge of a model's graph carries, all in one backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.hooks import Hooks
from hooked_asr.patching.edge_result import EdgeResult
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.graph import Graph, Read, computation_graph
from hooked_asr.patching.graph_runs import (
    EdgeError,
    Received,
    Recorder,
    Recording,
    mean_of,
    norm_of,
    placed,
    record,
    run_pair,
    sent,
    wide,
)
from hooked_asr.patching.operations import Inputs, Run

Scores = Float[Tensor, "receiver sender"]

_METHODS = ("plain", "integrated")


def edge_attribution(
    model: Any,
    *,
    clean: Run,
    reference: Run,
    metric: AnyMetric,
    method: str = "plain",
    steps: int = 5,
    progress: bool = True,
) -> EdgeResult:
    """How the metric would move, to first order, if one edge carried the reference's value.

    An edge's score is `(sender's output in the reference run - in the clean run) · gradient of the
    metric with respect to what the receiver reads, before its norm`, summed over positions and
    width, and its mean over clips: an estimate of `metric(edge patched) - metric(clean)`.

    - `clean`, `reference`: the runs, as in `sweep`, with as many tokens; both from log-mel frames.
    - `metric`: as in `sweep`, but for gradients: tensors in, a tensor out.
    - `method`: "plain", with the clean run's gradients: two forwards and one backward; or
      "integrated", with their mean over `steps` runs whose inputs (the encoder's embedding and the
      tokens') go in equal steps from the reference's to the clean ones, the last of them the clean
      run. This sees edges where a saturated metric has no gradient in the clean run.

    In float16, where an encoder clamps its stream, a stream is not the sum of what was written.

    Raises `EdgeError` for runs that do not fit each other, and for a metric without a gradient.

    Sources: "Attribution Patching Outperforms Automated Circuit Discovery" (2023), section 3; for
    "integrated", "Have Faith in Faithfulness" (2024), section 2.
    """
    if method not in _METHODS or steps < 1:
        raise EdgeError(
            f"methods are {' and '.join(map(repr, _METHODS))}, with at least one step; "
            f"got {method!r} and steps={steps}"
        )
    inputs, others = run_pair(model, clean, reference)
    graph = computation_graph(model.config)
    with torch.no_grad():
        logits, away = record(model, graph, others)
        reference_value = float(mean_of(metric, logits))
    run = _GradientRun(model, graph, inputs, metric)
    n_steps = steps if method == "integrated" else 1
    n_parts = n_steps * len(graph.reads)
    with tqdm(total=n_parts, desc="edges", unit="part", disable=not progress) as bar:
        clean_value, scores = _mean_scores(run, away, n_steps, bar)
    return EdgeResult(
        graph=graph,
        scores=scores,
        clean=clean_value,
        reference=reference_value,
        metric=metric_name(metric),
        method=method,
        steps=n_steps,
        model=model.name,
    )


def _mean_scores(
    run: _GradientRun, away: Recording, n_steps: int, bar: Any
) -> tuple[float, Scores]:
    """The clean run's metric, and each edge's score, its mean over the steps."""
    graph = run.graph
    scores = torch.zeros(graph.edges.shape, dtype=torch.float64)
    clean_value = run.at(1.0, away)
    change = {part: away.writes[part] - x for part, x in run.recording.writes.items()}
    for step in range(n_steps, 0, -1):
        if step < n_steps:
            run.at(step / n_steps, away)
        for place, part in run.scores(change):
            scores[graph.rows[place], _columns(graph, graph.reads[place])] += part / n_steps
            bar.update()
    return clean_value, scores


class _GradientRun:
    """A run on the clean inputs, or on the way to them, and the metric's gradient at each read."""

    def __init__(self, model: Any, graph: Graph, inputs: Inputs, metric: AnyMetric) -> None:
        self._model, self.graph, self._inputs, self._metric = model, graph, inputs, metric
        self._gradients: dict[str, Tensor] = {}
        self.recording = Recording()

    def at(self, share: float, away: Recording) -> float:
        """Run with inputs so far from the reference's to the clean ones; gives the metric."""
        recorder = Recorder(self._model, self.graph, self._inputs)
        watched: dict[str, Tensor] = {}

        def listen(x: Tensor, hook: Any) -> None:
            watched[hook.name] = x if x.requires_grad else x.requires_grad_()

        hooks = [*recorder.hooks, ([_listens_at(read) for read in self.graph.reads], listen)]
        if share < 1:
            hooks = [*self._towards(share, away), *hooks]
        with torch.enable_grad():
            logits = self._model.run_with_hooks(**self._inputs, fwd_hooks=hooks)
            value = mean_of(self._metric, logits)
        if not value.requires_grad:
            raise EdgeError(
                "no gradient reaches the metric: let it be a differentiable function of the "
                "logits, and run outside torch.inference_mode()"
            )
        gradients = torch.autograd.grad(value, list(watched.values()), materialize_grads=True)
        self._gradients = dict(zip(watched, gradients, strict=True))
        self.recording = recorder.recording
        return float(value.detach())

    def _towards(self, share: float, away: Recording) -> Hooks:
        """Hooks that mix the reference's embeddings in."""
        # What stands in the audio's places follows from the encoder's own mixed input.
        heard = placed(self._model, self._inputs).get("audio")

        def mix(x: Tensor, hook: Any) -> Tensor:
            mixed = torch.lerp(away.streams[hook.name], x, share)
            if heard is None or hook.spec.clock != "pos":
                return mixed
            return torch.where(heard, x, mixed)

        return [(["encoder.0.hook_resid_pre", "decoder.0.hook_resid_pre"], mix)]

    def scores(self, change: dict[str, Tensor]) -> Iterator[tuple[int, Scores]]:
        """Each read's place in the graph, and the scores of its edges."""
        for place, read in enumerate(self.graph.reads):
            gradient = wide(self._gradient(read))
            writes = [self.graph.writes[source] for source in read.sources]
            scores = [
                einsum(
                    gradient,
                    # Made again for each read: those of all heads at once would not fit in memory.
                    sent(self._model, write, wide(change[write.part])),
                    "batch pos receiver d, batch pos sender d -> receiver sender",
                )
                for write in writes
            ]
            yield place, torch.cat(scores, 1).double().cpu()

    def _gradient(self, read: Read) -> Received:
        """The metric's gradient with respect to each receiver's copy of the stream."""
        gradient = self._gradients[_listens_at(read)]
        if read.projection is not None:
            weight = getattr(self._model.get_submodule(read.part), f"W_{read.projection.upper()}")
            gradient = einsum(
                gradient,
                weight.detach(),
                "batch pos receiver d_head, receiver d d_head -> batch pos receiver d",
            )
        else:
            gradient = gradient[..., None, :]
        if read.norm is None:
            return gradient
        with torch.enable_grad():
            stream = self.recording.streams[read.stream][..., None, :].expand_as(gradient)
            stream = stream.detach().requires_grad_()
            normed = norm_of(self._model, read)(stream)
        before: Received = torch.autograd.grad(normed, stream, gradient)[0]
        return before


def _listens_at(read: Read) -> str:
    """Where a read's gradient is smallest: a head's at its query, key or value."""
    return read.hook if read.projection is None else read.hook.removesuffix("_input")


def _columns(graph: Graph, read: Read) -> slice:
    first, last = graph.columns[read.sources[0]], graph.columns[read.sources[-1]]
    return slice(first.start, last.stop)
