"""Linear probes: what a straight line through a model's activations tells of a recording."""

from hooked_asr.probes.confidence import CONFIDENCE, confidence_features
from hooked_asr.probes.controls import log_mel_features, random_weights
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.fitting import fit_probes
from hooked_asr.probes.linear import LinearProbe
from hooked_asr.probes.loops import fit_loops, loop_labels
from hooked_asr.probes.origin import ProbeOrigin
from hooked_asr.probes.pairs import PairScores, pair_scores
from hooked_asr.probes.result import ProbeResult
from hooked_asr.probes.scores import Score
from hooked_asr.probes.stored import fit_stored
from hooked_asr.probes.tasks import TASKS, TaskResult, probe_task

__all__ = [
    "CONFIDENCE",
    "TASKS",
    "LinearProbe",
    "PairScores",
    "ProbeError",
    "ProbeOrigin",
    "ProbeResult",
    "Score",
    "TaskResult",
    "confidence_features",
    "fit_loops",
    "fit_probes",
    "fit_stored",
    "log_mel_features",
    "loop_labels",
    "pair_scores",
    "probe_task",
    "random_weights",
]
