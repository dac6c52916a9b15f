"""Circuits: some of the edges of a model's graph."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.patching.graph import Edges, Graph, graph_from
from hooked_asr.patching.saving import ResultError


class CircuitError(HookedASRError):
    """A circuit that cannot be made as asked."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """A subgraph: the edges that carry their own run's values (see `run_circuit`)."""

    graph: Graph
    kept: Edges

    def __post_init__(self) -> None:
        if (self.kept & ~self.graph.edges).any():
            raise CircuitError("a circuit's edges must be edges of its graph")

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """All edges: the model as it is."""
        return cls(graph, graph.edges.clone())

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[tuple[str, str]]) -> Circuit:
        """The circuit of some edges, each by its sender and receiver.

        Raises `GraphError` for an edge that the graph does not have.
        """
        kept = torch.zeros_like(graph.edges)
        for sender, receiver in edges:
            kept[graph.place(sender, receiver)] = True
        return cls(graph, kept)

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Each edge's sender and receiver."""
        return [
            (self.graph.senders[sender], self.graph.receivers[receiver])
            for receiver, sender in self.kept.nonzero().tolist()
        ]

    @property
    def nodes(self) -> list[str]:
        """The senders that have a part in it."""
        senders = self.kept.any(0) | (self.graph.feeds & self.kept.any(1, keepdim=True)).any(0)
        return [self.graph.senders[i] for i in senders.nonzero().flatten().tolist()]

    def without(self, sender: str, receiver: str) -> Circuit:
        """The same circuit without one edge."""
        kept = self.kept.clone()
        kept[self.graph.place(sender, receiver)] = False
        return Circuit(self.graph, kept)

    def pruned(self) -> Circuit:
        """Without the edges that no input leads to, and those that do not lead to the logits.

        Where the edges outside carry a reference run's values, they changed nothing: a head all of
        whose inputs are the reference's writes what it wrote there.
        """
        feeds = self.graph.feeds
        ends = ~feeds.any(1)  # the logits
        kept = self.kept
        while True:
            reached = self.graph.inputs | (feeds & kept.any(1, keepdim=True)).any(0)
            leading = ends | (feeds & kept.any(0)).any(1)
            fewer = kept & reached & leading[:, None]
            if torch.equal(fewer, kept):
                return Circuit(self.graph, kept)
            kept = fewer

    def to_pandas(self) -> pd.DataFrame:
        """One row for each edge: sender, receiver."""
        return pd.DataFrame(self.edges, columns=["sender", "receiver"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph and the edges as JSON."""
        with written_aside(path) as aside:
            fields = {"graph": asdict(self.graph), "edges": self.edges}
            aside.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read what `save` wrote.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            edges = [(sender, receiver) for sender, receiver in fields["edges"]]
            return cls.of(graph_from(fields["graph"]), edges)
        except (ValueError, KeyError, TypeError, AttributeError, HookedASRError) as error:
            raise ResultError(f"{path} holds no saved circuit: {error!r}") from error


def best_edges(
    graph: Graph,
    scores: Float[Tensor, "receiver sender"],
    n_edges: int | None = None,
    threshold: float | None = None,
) -> Edges:
    """The edges with the greatest scores either way, not pruned (see `EdgeResult.circuit`)."""
    if (n_edges is None) == (threshold is None):
        raise CircuitError("a circuit has either a threshold or a number of edges: give one")
    if threshold is not None:
        return graph.edges & (scores.abs() >= threshold)
    if n_edges is None or n_edges < 0:
        raise CircuitError(f"n_edges is a number from 0 on; got {n_edges}")
    return _grown(graph, scores.abs().double(), n_edges)


def _grown(graph: Graph, strengths: Float[Tensor, "receiver sender"], n_edges: int) -> Edges:
    """Grown from the logits, an edge at a time, always by the strongest that leads there."""
    kept = torch.zeros_like(graph.edges)
    # Of each receiver that leads to the logits, the strongest edge not yet taken.
    waiting: list[tuple[float, int, int]] = []
    ranked: dict[int, list[int]] = {}

    def offer(receiver: int) -> None:
        if ranked[receiver]:
            sender = ranked[receiver].pop()
            heapq.heappush(waiting, (-float(strengths[receiver, sender]), receiver, sender))

    def open_up(receivers: Tensor) -> None:
        for receiver in receivers.nonzero().flatten().tolist():
            if receiver not in ranked:
                senders = graph.edges[receiver].nonzero().flatten()
                order = strengths[receiver, senders].argsort(stable=True)
                ranked[receiver] = senders[order].tolist()
                offer(receiver)

    open_up(~graph.feeds.any(1))
    for _ in range(n_edges):
        if not waiting:
            break
        _, receiver, sender = heapq.heappop(waiting)
        kept[receiver, sender] = True
        open_up(graph.feeds[:, sender])
        offer(receiver)
    return kept
