"""Causal experiments: patch or ablate site after site, and see what it does."""

from hooked_asr.patching.grid import (
    Grid,
    Sites,
    SitesError,
    attentions,
    components,
    heads,
    parse_sites,
)
from hooked_asr.patching.metrics import Metric, kl, log_prob, logit_diff, transcript_log_prob
from hooked_asr.patching.result import SweepResult
from hooked_asr.patching.sweep import SweepError, sweep

__all__ = [
    "Grid",
    "Metric",
    "Sites",
    "SitesError",
    "SweepError",
    "SweepResult",
    "attentions",
    "components",
    "heads",
    "kl",
    "log_prob",
    "logit_diff",
    "parse_sites",
    "sweep",
    "transcript_log_prob",
]
