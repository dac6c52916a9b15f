"""Probes that read along while a model decodes, and raise an alarm."""

from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.generate import Monitored, generate_monitored
from hooked_asr.monitors.monitor import Monitor
from hooked_asr.monitors.scores import ClipScores, SpanScore

__all__ = [
    "ClipScores",
    "Monitor",
    "MonitorError",
    "Monitored",
    "SpanScore",
    "generate_monitored",
]
