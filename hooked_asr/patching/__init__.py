"""Causal experiments: patch or ablate site after site, and see what it does."""

from hooked_asr.patching.alignment_heads import find_alignment_heads
from hooked_asr.patching.grid import (
    Grid,
    Sites,
    SitesError,
    attentions,
    components,
    heads,
    parse_sites,
)
from hooked_asr.patching.loops import HeardClip, RepetitionError, hear_clips
from hooked_asr.patching.metrics import Metric, kl, log_prob, logit_diff, transcript_log_prob
from hooked_asr.patching.repetition import repetition
from hooked_asr.patching.repetition_result import RepetitionResult
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.sweep import SweepError, sweep

__all__ = [
    "Grid",
    "HeardClip",
    "Metric",
    "RepetitionError",
    "RepetitionResult",
    "Sites",
    "SitesError",
    "SweepError",
    "SweepResult",
    "attentions",
    "components",
    "find_alignment_heads",
    "heads",
    "hear_clips",
    "kl",
    "log_prob",
    "logit_diff",
    "parse_sites",
    "repetition",
    "sweep",
    "transcript_log_prob",
]
