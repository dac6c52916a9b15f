"""What a metric reads of a run, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from hooked_asr.patching.metrics import Metric
from hooked_asr.shapes import Logits

AnyMetric = Callable[[Logits], Shaped[Tensor, "..."] | float]


def reads_of(metric: AnyMetric, n_pos: int) -> range:
    """The positions that a metric reads; all of them, for a function that does not say."""
    return metric.reads(n_pos) if isinstance(metric, Metric) else range(n_pos)


def measured(metric: AnyMetric, here: Logits) -> Tensor:
    """A metric's mean over clips, from the logits at the positions that it reads."""
    value = metric.measure(here.float()) if isinstance(metric, Metric) else metric(here)
    return torch.as_tensor(value).float().mean()


def metric_name(metric: Any) -> str:
    """What a metric, or any function in its place, is called."""
    return str(getattr(metric, "name", getattr(metric, "__name__", "metric")))
