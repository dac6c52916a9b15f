"""Probes that read along while a model decodes, and raise an alarm."""

from hooked_asr.monitors.corpus import transcribe_clips
from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.gate import Gate, gate
from hooked_asr.monitors.generate import Monitored, generate_monitored
from hooked_asr.monitors.monitor import Monitor
from hooked_asr.monitors.roc_curve import Alarms, Roc, auc_within, roc
from hooked_asr.monitors.scores import ClipScores, SpanScore
from hooked_asr.monitors.tokens import plot_tokens, scores_at
from hooked_asr.monitors.transcripts import ClipTranscripts, HeardClip

__all__ = [
    "Alarms",
    "ClipScores",
    "ClipTranscripts",
    "Gate",
    "HeardClip",
    "Monitor",
    "MonitorError",
    "Monitored",
    "Roc",
    "SpanScore",
    "auc_within",
    "gate",
    "generate_monitored",
    "plot_tokens",
    "roc",
    "scores_at",
    "transcribe_clips",
]
