"""The score of each edge of a model's graph."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.patching.circuits import Circuit, best_edges
from hooked_asr.patching.graph import Graph, graph_from
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.heatmap import heatmap


@dataclass(frozen=True, eq=False)
class EdgeResult:
    """One score for each edge (see `edge_attribution`).

    - `scores`: over receivers and senders; 0 where there is no edge (see `graph.edges`).
    - `clean`, `reference`: the metric of the two runs; scores estimate changes from `clean`.
    """

    graph: Graph
    scores: Float[Tensor, "receiver sender"]
    clean: float
    reference: float
    metric: str
    method: str
    steps: int
    model: str

    def to_pandas(self) -> pd.DataFrame:
        """One row for each edge: sender, receiver, score."""
        receivers, senders = self.graph.edges.nonzero(as_tuple=True)
        return pd.DataFrame(
            {
                "sender": [self.graph.senders[i] for i in senders],
                "receiver": [self.graph.receivers[i] for i in receivers],
                "score": self.scores[receivers, senders].double().numpy(),
            }
        )

    def top(self, k: int = 10) -> pd.DataFrame:
        """The `k` edges with the greatest scores either way, strongest first."""
        table = self.to_pandas()
        order = table["score"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order[:k]].reset_index(drop=True)

    def circuit(self, *, n_edges: int | None = None, threshold: float | None = None) -> Circuit:
        """The edges that carry most, without those that lead from no input or to no logits.

        - `threshold`: all edges whose score, either way, is at least so great.
        - `n_edges`: so many edges, grown from the logits: each is the strongest of those whose
          receiver leads to the logits over edges that were taken before.

        Either is then pruned, and what is left may be fewer edges.

        Raises `CircuitError` where not exactly one of the two is given.

        Source: "Have Faith in Faithfulness" (2024), section 2.
        """
        kept = best_edges(self.graph, self.scores, n_edges, threshold)
        return Circuit(self.graph, kept).pruned()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the heatmap (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, self._plain, self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EdgeResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            graph = graph_from(fields.pop("graph"))
            scores = torch.zeros(graph.edges.shape, dtype=torch.float64)
            scores[graph.edges] = torch.tensor(
                [math.nan if score is None else score for score in fields.pop("scores")],
                dtype=torch.float64,
            )
            for name in ("clean", "reference"):
                fields[name] = math.nan if fields[name] is None else fields[name]
            return cls(graph=graph, scores=scores, **fields)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ResultError(f"{path} holds no saved edge scores: {error!r}") from error

    def plot(self) -> alt.Chart | alt.FacetChart:
        """A heatmap of the strongest edge between each two parts, as an Altair chart."""
        reads, writes = self.graph.reads, self.graph.writes
        strongest = torch.full((len(reads), len(writes)), math.nan)
        for i, read in enumerate(reads):
            for j in read.sources:
                scores = self.scores[self.graph.rows[i], self.graph.columns[j]].flatten()
                strongest[i, j] = scores[scores.abs().argmax()]
        return heatmap(
            strongest,
            {"receiver": [read.name for read in reads], "sender": [write.part for write in writes]},
            label="score",
            title=f"Strongest edge between parts: {self.metric}",
            subtitle=f"{Path(self.model).name}; clean {self.clean:.3f}, "
            f"reference {self.reference:.3f}",
        )

    def _plain(self) -> dict[str, Any]:
        scores = self.scores[self.graph.edges].double().tolist()
        return {**vars(self), "graph": asdict(self.graph), "scores": scores}
