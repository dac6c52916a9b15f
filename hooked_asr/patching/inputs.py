"""From a recording to the two runs of a sweep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.audio import fit_length, load_audio, match_noise
from hooked_asr.patching.metric_text import parse_metric
from hooked_asr.patching.metrics import Metric
from hooked_asr.patching.sweep import Inputs


@dataclass(frozen=True)
class PatchingInputs:
    """What a sweep over one recording needs: two runs on the same text, and a metric."""

    clean: Inputs
    reference: Inputs
    metric: Metric
    text: str


def patching_inputs(
    model: Any,
    audio: str | os.PathLike[str],
    reference: str = "noise",
    metric: str = "transcript",
    text: str | None = None,
    seed: int = 0,
    **prompt: Any,
) -> PatchingInputs:
    """The runs of a sweep over one recording, teacher-forced with one transcript.

    - `reference`: "noise" (white, as loud as the clip), "silence", or another recording, which is
      cut or padded with silence to the clip's length where that is how many positions it takes.
    - `metric`: see `metric_text.METRIC_HELP`.
    - `text`: the transcript; the model's own if not given.
    - `prompt`: how the model is asked (`language`, or Qwen2-Audio's `prompt`); what is not given is
      told from the audio, or the model's usual.

    Raises `AudioError`, `InputError` or `MetricError` for what cannot be used.
    """
    samples = load_audio(audio)
    asked = model.settled(samples, **prompt)
    text = model.transcribe(samples, **asked) if text is None else text
    clean = model.to_inputs(samples, text=text, **asked)
    other = reference_sound(reference, samples, seed)
    if model.config.prefix:
        other = fit_length(other, len(samples))
    n_prompt = model.to_inputs(samples, text="", **asked)["tokens"].shape[1]
    return PatchingInputs(
        clean=clean,
        reference=model.to_inputs(other, text=text, **asked),
        metric=parse_metric(metric, model, clean, n_prompt),
        text=text,
    )


def reference_sound(reference: str, samples: Tensor, seed: int = 0) -> Tensor:
    """What a clip is patched from: "noise" (as loud as it), "silence", or a recording by its path.

    Raises `AudioError` for a recording that cannot be read.
    """
    if reference == "noise":
        return match_noise(samples, seed)
    if reference == "silence":
        return torch.full_like(samples, 1e-9)  # exact zeros would warn of silence
    return load_audio(reference)
