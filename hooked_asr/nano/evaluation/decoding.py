"""What a model makes of test clips: texts, languages, how sure it is that nobody speaks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.errors import HookedASRError
from hooked_asr.generation import greedy
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.evaluation.sets import TestClip
from hooked_asr.nano.tokenizer import NO_SPEECH
from hooked_asr.shapes import Mel

BATCH = 32


class MissingPackageError(HookedASRError):
    """A package that the evaluation needs is not installed."""


@dataclass(frozen=True)
class Decoded:
    """A transcript, its tokens, and whether the decoder ran out of positions before its end."""

    text: str
    tokens: tuple[int, ...]
    at_limit: bool


@torch.no_grad()
def decode(
    model: HookedWhisper,
    clips: Sequence[TestClip],
    task: str = "transcribe",
    timestamps: bool = False,
) -> list[Decoded]:
    """The likeliest transcript of each clip, told its language."""
    decoded = []
    limit = model.config.decoder.n_ctx
    for batch, mel in batches(model, clips):
        prompts = [model.prompt(clip.language, task, timestamps) for clip in batch]
        prompt = torch.tensor(prompts, device=model.device)
        for row in greedy(model, {"audio": model.encode(mel), "tokens": prompt}, limit):
            text = model.to_string(row, special=False).strip()
            decoded.append(Decoded(text, tuple(row), len(row) == limit - prompt.shape[1]))
    return decoded


def languages_heard(model: HookedWhisper, clips: Sequence[TestClip]) -> list[str]:
    """The language that each clip is taken for."""
    return [language for _, mel in batches(model, clips) for language in model.detect_language(mel)]


@torch.no_grad()
def no_speech_probabilities(model: HookedWhisper, clips: Sequence[TestClip]) -> list[float]:
    """The probability of <|nospeech|> behind the start token, for each clip."""
    rules: Any = model.generation_config
    token = model.to_single_token(NO_SPEECH)
    found: list[float] = []
    for batch, mel in batches(model, clips):
        start = torch.full((len(batch), 1), rules.decoder_start_token_id, device=model.device)
        logits = model.decode(start, model.encode(mel))[:, -1]
        found += logits.float().softmax(-1)[:, token].tolist()
    return found


def batches(
    model: HookedWhisper, clips: Sequence[TestClip]
) -> Iterator[tuple[Sequence[TestClip], Mel]]:
    """The clips, 32 at a time, with their log-mel frames in the model's window."""
    extractor: Any = model.feature_extractor  # to_mel would warn of every silent clip
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        sounds = [clip.samples for clip in batch]
        made = extractor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        yield batch, made["input_features"].to(model.device, model.dtype)


def needed(module: str) -> Any:
    """A module of the `nano` extra.

    Raises `MissingPackageError` where it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{module} is not installed: pip install 'hooked_asr[nano]'"
        ) from error
