"""Causal experiments: patch or ablate site after site, and see what it does."""

from hooked_asr.manifests import ManifestError
from hooked_asr.patching.agreement import Agreement, compare
from hooked_asr.patching.alignment_heads import find_alignment_heads
from hooked_asr.patching.attribution import attribution
from hooked_asr.patching.circuit_runs import run_circuit
from hooked_asr.patching.circuits import Circuit, CircuitError
from hooked_asr.patching.dataset import PairError, pair_seed, sweep_dataset
from hooked_asr.patching.dataset_result import DatasetResult, SweptPair, SweptSites
from hooked_asr.patching.edge_result import EdgeResult
from hooked_asr.patching.edges import edge_attribution
from hooked_asr.patching.engine import MemoryLimitError, RowValues, run_rows
from hooked_asr.patching.faithfulness import FaithfulnessResult, faithfulness
from hooked_asr.patching.gradients import AttributionError
from hooked_asr.patching.graph import Graph, GraphError, computation_graph
from hooked_asr.patching.graph_runs import EdgeError
from hooked_asr.patching.grid import (
    Grid,
    Sites,
    SitesError,
    attentions,
    components,
    heads,
    neurons,
    parse_sites,
)
from hooked_asr.patching.loop_forks import LoopFork, loop_forks
from hooked_asr.patching.loops import HeardClip, RepetitionError, hear_clips
from hooked_asr.patching.manifest import Pair, read_pairs
from hooked_asr.patching.mending import mend_words, written_to_stream
from hooked_asr.patching.mending_result import MendingResult
from hooked_asr.patching.metrics import (
    Metric,
    MetricError,
    kl,
    log_prob,
    logit,
    logit_diff,
    preference,
    prob,
    rank,
    transcript_log_prob,
)
from hooked_asr.patching.operations import SweepError
from hooked_asr.patching.over_runs import edges_over, faithfulness_over, sweep_over
from hooked_asr.patching.path_ends import PathError
from hooked_asr.patching.paths import path_patching
from hooked_asr.patching.repetition import repetition
from hooked_asr.patching.repetition_result import RepetitionResult
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.sweep import sweep
from hooked_asr.patching.text_metrics import TextMetric, character_error_rate, word_error_rate
from hooked_asr.patching.treatments import TreatmentError, treatments
from hooked_asr.patching.treatments_result import TreatmentResult
from hooked_asr.patching.word_pairs import word_pairs
from hooked_asr.patching.words import HeardWord, WordError, hear_words

__all__ = [
    "Agreement",
    "AttributionError",
    "Circuit",
    "CircuitError",
    "DatasetResult",
    "EdgeError",
    "EdgeResult",
    "FaithfulnessResult",
    "Graph",
    "GraphError",
    "Grid",
    "HeardClip",
    "HeardWord",
    "LoopFork",
    "ManifestError",
    "MemoryLimitError",
    "MendingResult",
    "Metric",
    "MetricError",
    "Pair",
    "PairError",
    "PathError",
    "RepetitionError",
    "RepetitionResult",
    "RowValues",
    "Sites",
    "SitesError",
    "SweepError",
    "SweepResult",
    "SweptPair",
    "SweptSites",
    "TextMetric",
    "TreatmentError",
    "TreatmentResult",
    "WordError",
    "attentions",
    "attribution",
    "character_error_rate",
    "compare",
    "components",
    "computation_graph",
    "edge_attribution",
    "edges_over",
    "faithfulness",
    "faithfulness_over",
    "find_alignment_heads",
    "heads",
    "hear_clips",
    "hear_words",
    "kl",
    "log_prob",
    "logit",
    "logit_diff",
    "loop_forks",
    "mend_words",
    "neurons",
    "pair_seed",
    "parse_sites",
    "path_patching",
    "preference",
    "prob",
    "rank",
    "read_pairs",
    "repetition",
    "run_circuit",
    "run_rows",
    "sweep",
    "sweep_dataset",
    "sweep_over",
    "transcript_log_prob",
    "treatments",
    "word_error_rate",
    "word_pairs",
    "written_to_stream",
]
