"""Linear probes: what a straight line through a model's activations tells of a recording."""

from hooked_asr.probes.controls import log_mel_features, random_weights
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.fitting import fit_probes
from hooked_asr.probes.linear import LinearProbe
from hooked_asr.probes.origin import ProbeOrigin
from hooked_asr.probes.result import ProbeResult
from hooked_asr.probes.scores import Score
from hooked_asr.probes.stored import fit_stored
from hooked_asr.probes.tasks import TASKS, TaskResult, probe_task

__all__ = [
    "TASKS",
    "LinearProbe",
    "ProbeError",
    "ProbeOrigin",
    "ProbeResult",
    "Score",
    "TaskResult",
    "fit_probes",
    "fit_stored",
    "log_mel_features",
    "probe_task",
    "random_weights",
]
