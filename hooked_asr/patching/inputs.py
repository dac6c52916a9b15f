"""From a recording to the two runs of a sweep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr.audio import load_audio, match_noise
from hooked_asr.patching.metric_text import parse_metric
from hooked_asr.patching.metrics import Metric
from hooked_asr.patching.sweep import Run


@dataclass(frozen=True)
class PatchingInputs:
    """What a sweep over one recording needs: two runs on the same text, and a metric."""

    clean: Run
    reference: Run
    metric: Metric
    text: str


def patching_inputs(
    model: Any,
    audio: str | os.PathLike[str],
    reference: str = "noise",
    metric: str = "transcript",
    text: str | None = None,
    language: str | None = None,
    seed: int = 0,
) -> PatchingInputs:
    """The runs of a sweep over one recording, teacher-forced with one transcript.

    - `reference`: "noise" (white, as loud as the clip), "silence", or another recording.
    - `metric`: see `metric_text.METRIC_HELP`.
    - `text`: the transcript; the model's own if not given. Likewise `language`.

    Raises `AudioError`, `InputError` or `MetricError` for what cannot be used.
    """
    samples = load_audio(audio)
    mel = model.to_mel(samples)
    language = language or model.detect_language(mel)[0]
    text = model.transcribe(samples, language) if text is None else text
    tokens = model.to_tokens(text, language)
    if reference == "noise":
        other = model.to_mel(match_noise(samples, seed))
    elif reference == "silence":
        other = model.to_mel(torch.full_like(samples, 1e-9))  # exact zeros would warn of silence
    else:
        other = model.to_mel(reference)
    return PatchingInputs(
        clean=(mel, tokens),
        reference=(other, tokens),
        metric=parse_metric(metric, model, mel, tokens, len(model.prompt(language))),
        text=text,
    )
