"""How much of what a model does its circuits do on their own."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from tqdm.auto import tqdm

from hooked_asr.patching.circuit_runs import Outside
from hooked_asr.patching.circuits import Circuit, CircuitError
from hooked_asr.patching.engine.measure import AnyMetric, metric_name
from hooked_asr.patching.graph_runs import mean_of, record, run_pair
from hooked_asr.patching.operations import Run
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.lines import lines


@dataclass(frozen=True)
class FaithfulnessResult:
    """The metric of circuits, one after the other.

    - `n_edges`, `n_nodes`, `values`: each circuit's size (edges; senders that have a part in it)
      and the metric of a run of it alone.
    - `clean`: the metric of the whole model; `empty`: that of the circuit without edges, which is
      the reference run's where edges outside carry that run's values.
    - `all_edges`: how many the whole model has.
    """

    n_edges: list[int]
    n_nodes: list[int]
    values: list[float]
    clean: float
    empty: float
    all_edges: int
    metric: str
    ablation: str
    model: str

    @property
    def faithfulness(self) -> list[float]:
        """`(circuit - empty) / (clean - empty)`: 1 for a circuit that does all that the model does.

        NaN where clean and empty do not differ.
        """
        span = self.clean - self.empty or math.nan
        return [(value - self.empty) / span for value in self.values]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each circuit: edges, nodes, value, faithfulness."""
        return pd.DataFrame(
            {
                "edges": self.n_edges,
                "nodes": self.n_nodes,
                "value": self.values,
                "faithfulness": self.faithfulness,
            }
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the curve (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FaithfulnessResult:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            fields["values"] = [math.nan if v is None else v for v in fields["values"]]
            for name in ("clean", "empty"):
                fields[name] = math.nan if fields[name] is None else fields[name]
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved faithfulness: {error!r}") from error

    def plot(self) -> alt.HConcatChart:
        """Faithfulness over the number of edges, in order of size, as an Altair chart."""
        points = sorted(zip(self.n_edges, self.faithfulness, strict=True))
        return lines(
            {"": {"circuit": [(str(n), value) for n, value in points], "model": self._whole()}},
            x=f"edges (of {self.all_edges})",
            y="faithfulness",
            title=f"{self.metric}, {self.ablation} outside the circuit; {Path(self.model).name}",
        )

    def _whole(self) -> list[tuple[str, float]]:
        return [(str(n), 1.0) for n in sorted(self.n_edges)]


@torch.no_grad()
def faithfulness(
    model: Any,
    circuits: Circuit | Sequence[Circuit],
    *,
    clean: Run,
    reference: Run,
    metric: AnyMetric,
    ablation: str = "reference",
    progress: bool = True,
) -> FaithfulnessResult:
    """Run each circuit alone (see `run_circuit`), and compare its metric with the whole model's.

    One forward for each circuit, and two more. A curve over sizes is one of circuits of one result:
    `faithfulness(model, [result.circuit(n_edges=n) for n in (10, 30, 100, 300)], …)`.

    Raises `EdgeError` for runs that do not fit each other, `CircuitError` where there is no
    circuit, or one of another model.

    Source: "Have Faith in Faithfulness" (2024), section 2.
    """
    several = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not several:
        raise CircuitError("the list of circuits is empty")
    inputs, others = run_pair(model, clean, reference)
    graph = several[0].graph
    clean_value = float(mean_of(metric, model(**inputs)))
    logits, away = record(model, graph, others)
    outside = Outside(model, graph, away, others).ablated(ablation)
    if ablation != "reference":
        logits = outside.run(Circuit.of(graph, []), inputs)
    bar = tqdm(several, desc="faithfulness", unit="circuit", disable=not progress)
    return FaithfulnessResult(
        values=[float(mean_of(metric, outside.run(circuit, inputs))) for circuit in bar],
        n_edges=[len(circuit) for circuit in several],
        n_nodes=[len(circuit.nodes) for circuit in several],
        clean=clean_value,
        empty=float(mean_of(metric, logits)),
        all_edges=int(graph.edges.sum()),
        metric=metric_name(metric),
        ablation=ablation,
        model=model.name,
    )
