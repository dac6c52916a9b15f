"""A probe that is read while its model decodes, and when it raises an alarm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.monitors.errors import MonitorError
from hooked_asr.names import HookSpec, resolve
from hooked_asr.probes import LinearProbe
from hooked_asr.probes.question import Label

if TYPE_CHECKING:
    from hooked_asr.monitors.generate import Monitored

_POOLS = ("", "last", "mean", "frames", "tokens")


@dataclass(frozen=True, eq=False)
class Monitor:
    """A trained probe, and from which score on it raises an alarm.

        monitor = Monitor.load("hallucination.safetensors", model, threshold=0.8)
        heard = monitor.generate(model, "clip.flac")
        heard.said[0].text, heard.scores[0].final, heard.scores[0].flagged

    - `threshold`: scores from here on are flagged. A score is the probability of the class
      `alarm`, or the number that the probe tells. By default 0.5 for classes, and none for numbers:
      nothing is flagged.
    - `alarm`: by default the second of two classes, the one that the probe's direction points to.

    How the probe's rows were pooled says what is read: "last" is the last token of text (or frame)
    that was read in; otherwise the probe's outputs, before they become probabilities, are averaged
    over tokens of text (or real frames), which for "mean" is the output for the mean.

    Raises `MonitorError` for a probe of no site or another pool, an alarm that is none of the
    classes, or more than two classes without one.
    """

    probe: LinearProbe
    threshold: float | None = None
    alarm: Label | None = None

    def __post_init__(self) -> None:
        probe = self.probe
        if not probe.site:
            raise MonitorError(
                f"the probe of {probe.name} names no site to read: fit it to features by hook name"
            )
        if probe.origin.pool not in _POOLS:
            raise MonitorError(
                f"the probe of {probe.name} was fitted to rows pooled by {probe.origin.pool!r}, "
                "which cannot be read token by token: fit it with pool 'last' or 'mean'"
            )
        _check_alarm(probe, self.alarm)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Any,
        threshold: float | None = None,
        alarm: Label | None = None,
    ) -> Monitor:
        """A monitor of a probe in a file (`LinearProbe.save`), for the model that it belongs to.

        Raises `ProbeError` for a file that holds none, and for a probe that was fitted to another
        model, naming both; `UnknownHookError` or `MonitorError` for a site that cannot be read.
        """
        monitor = cls(LinearProbe.load(path, model.device), threshold, alarm)
        monitor.probe.check(model)
        monitor.spec(model)
        return monitor

    @property
    def name(self) -> str:
        """What is told."""
        return self.probe.name

    def spec(self, model: Any) -> HookSpec:
        """The hook of a model that is read.

        Raises `UnknownHookError` where it has none of that name, `MonitorError` for one that has no
        vector at each token or frame while it decodes.
        """
        spec: HookSpec = model.hook_table[resolve(self.probe.site, list(model.hook_table))]
        behind = spec.name.startswith("decoder.") and spec.clock != "pos"
        if "query" in spec.axes or behind or spec.name.endswith("hook_pos_embed"):
            raise MonitorError(
                f"decoding passes {spec.name!r} ({' '.join(spec.axes)}) not once for each token or "
                "frame that it reads: fit the probe to a stream such as "
                "'decoder.0.hook_resid_post' or 'encoder.0.hook_resid_post'"
            )
        return spec

    def score(self, decisions: Float[Tensor, "*rows out"]) -> Float[Tensor, "*rows"]:
        """The probability of the alarm's class (or the number) for outputs of the probe."""
        classes = self.probe.classes
        if classes is None:
            return decisions[..., 0]
        if len(classes) == 2:
            sign = 1 if self._alarm == classes[1] else -1
            return (sign * decisions[..., 0]).sigmoid()
        return decisions.softmax(-1)[..., classes.index(self._alarm)]

    def flags(self, score: float | None) -> bool:
        """Whether a score raises the alarm."""
        if score is None:
            return False
        threshold = self.threshold
        if threshold is None:
            threshold = float("inf") if self.probe.classes is None else 0.5
        return score >= threshold

    def generate(self, model: Any, audio: Any = None, **options: Any) -> Monitored:
        """What `model.generate` gives, with the scores. See `generate_monitored`."""
        # Only now: its results are made of monitors.
        from hooked_asr.monitors.generate import generate_monitored

        return generate_monitored(model, [self], audio, **options)

    @property
    def _alarm(self) -> Any:
        if self.alarm is None and self.probe.classes:
            return self.probe.classes[-1]
        return self.alarm


def _check_alarm(probe: LinearProbe, alarm: Label | None) -> None:
    if probe.classes is None:
        if alarm is not None:
            raise MonitorError(
                f"the probe of {probe.name} tells numbers, and no class {alarm!r}: give a "
                "threshold alone"
            )
        return
    told = ", ".join(map(repr, probe.classes))
    if alarm is None and len(probe.classes) > 2:
        raise MonitorError(
            f"the probe of {probe.name} tells {told}: say which of them raises the alarm, as in "
            f"alarm={probe.classes[0]!r}"
        )
    if alarm is not None and alarm not in probe.classes:
        raise MonitorError(
            f"the probe of {probe.name} tells {told}; got alarm={alarm!r}: give one of these"
        )
