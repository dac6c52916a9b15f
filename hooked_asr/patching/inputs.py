"""From a recording to the two runs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.audio import AudioSource, load_audio
from hooked_asr.patching.metric_text import parse_metric
from hooked_asr.patching.metrics import Metric
from hooked_asr.patching.references import (
    ForcedClip,
    Inputs,
    reference_inputs,
    reference_sound,
)
from hooked_asr.patching.text_metrics import TextMetric

__all__ = ["PatchingInputs", "patching_inputs", "reference_sound"]


@dataclass(frozen=True)
class PatchingInputs:
    """What a sweep over one recording needs: two runs on the same text, and a metric.

    Where the metric is one of the transcript, they are runs on the prompt alone.
    """

    clean: Inputs
    reference: Inputs
    metric: Metric | TextMetric
    text: str


def patching_inputs(
    model: Any,
    audio: AudioSource,
    reference: AudioSource = "noise",
    metric: str = "transcript",
    text: str | None = None,
    seed: int = 0,
    words: Sequence[Any] | None = None,
    **prompt: Any,
) -> PatchingInputs:
    """The runs of a sweep over one recording, teacher-forced with one transcript.

    - `reference`: "noise" (white, as loud as the clip), "silence", "babble:5" (dB), another
      recording, …: see `references.REFERENCE_HELP`; or samples at 16 kHz.
    - `metric`: see `metric_text.METRIC_HELP`.
    - `text`: the transcript; the model's own if not given.
    - `words`: of the transcript, with `text`, `start` and `end` (s), for a reference in another
      voice; a Whisper tells them itself.
    - `prompt`: how the model is asked (`language`, or Qwen2-Audio's `prompt`); what is not given is
      told from the audio, or the model's usual.

    Raises `AudioError`, `InputError` or `MetricError` for what cannot be used; for a voice,
    `SynthesisError` or `NoAlignmentError`.
    """
    samples = load_audio(audio)
    asked = model.settled(samples, **prompt)
    text = model.transcribe(samples, **asked) if text is None else text
    clean = model.to_inputs(samples, text=text, **asked)
    n_prompt = model.to_inputs(samples, text="", **asked)["tokens"].shape[1]
    clip = ForcedClip(samples, clean, text, n_prompt, asked, words)
    other = reference_inputs(model, reference, clip, seed)
    measure = parse_metric(metric, model, clean, n_prompt, asked)
    if isinstance(measure, TextMetric):  # what is then said is the model's own
        clean, other = (_prompt_alone(run, n_prompt) for run in (clean, other))
    return PatchingInputs(clean=clean, reference=other, metric=measure, text=text)


def _prompt_alone(run: Inputs, n_prompt: int) -> Inputs:
    by_token = [name for name in run if name in ("tokens", "attention_mask")]
    return {**run, **{name: run[name][:, :n_prompt] for name in by_token}}
