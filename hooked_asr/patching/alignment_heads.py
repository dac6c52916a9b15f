"""Which cross-attention heads follow the sound, found by running a model on a few recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.audio import SAMPLE_RATE, load_audio
from hooked_asr.errors import HookedASRError
from hooked_asr.speech import alignment_scores, rank_heads
from hooked_asr.timing import FRAMES_PER_SECOND, encoder_length

_PATTERNS = "decoder.*.cross_attn.hook_pattern"
_MOST = 10  # OpenAI lists from 6 to 23 of them


class NoAlignmentError(HookedASRError):
    """No cross-attention, or no words, to find alignment heads by."""


@torch.no_grad()
def find_alignment_heads(
    model: Any,
    audio: Any,
    texts: str | Sequence[str] | None = None,
    *,
    top: int = _MOST,
    language: str | None = None,
) -> list[list[int]]:
    """The heads by whose attention words can be timed, for a checkpoint that lists none.

        heads = find_alignment_heads(model, ["one.wav", "other.wav"])
        model.generation_config.alignment_heads = heads

    The model reads its own transcript of each recording, or the true one, and every head is scored
    by how well its attention keeps to the way through the sound that all heads agree on (see
    `speech.alignment_scores`). Scores are averaged over the recordings.

    - `audio`: a recording (a path, or samples at 16 kHz) or a list, up to a window (30 s) each; a
      few of clear speech will do. Nothing is learned from those in which no words are heard.
    - `texts`: what is said in each.
    - `top`: how many heads.

    Returns `[[layer, head], …]`, the best first.

    Raises `NoAlignmentError` for a model without cross-attention, as many texts as there are no
    recordings, no words in any, or more heads than there are; `AudioError`.
    """
    _check(model, top)
    clips = [audio] if isinstance(audio, str | os.PathLike | np.ndarray | Tensor) else list(audio)
    said = _texts(texts, len(clips))
    asked = {} if language is None else {"language": language}
    scores = [
        one
        for clip, text in zip(clips, said, strict=True)
        if (one := _scores(model, load_audio(clip), text, asked)) is not None
    ]
    if not scores:
        raise NoAlignmentError(
            f"no words are heard in {len(clips)} recordings: give clear speech, or its texts"
        )
    ranked = rank_heads(torch.stack(scores).mean(0))
    return [[one.layer, one.head] for one in ranked[:top]]


def _check(model: Any, top: int) -> None:
    if "decoder.0.cross_attn.hook_pattern" not in model.hook_table:
        raise NoAlignmentError(
            f"{type(model).__name__} has no cross-attention, by which alone words are timed: "
            "give a Whisper"
        )
    decoder = model.config.decoder
    n_heads = decoder.n_layers * decoder.n_heads
    if not 1 <= top <= n_heads:
        raise NoAlignmentError(
            f"this model has {n_heads} cross-attention heads; top={top}: give 1 to {n_heads}"
        )


def _texts(texts: str | Sequence[str] | None, n_clips: int) -> list[str | None]:
    if texts is None:
        return [None] * n_clips
    given: list[str | None] = [texts] if isinstance(texts, str) else list(texts)
    if len(given) != n_clips:
        raise NoAlignmentError(
            f"{n_clips} recordings take as many texts; got {len(given)}: give what is said in "
            "each, in their order"
        )
    return given


def _scores(
    model: Any, samples: Float[Tensor, " sample"], text: str | None, asked: dict[str, str]
) -> Float[Tensor, "layer head"] | None:
    """The scores of every head on one recording; None where no words are heard in it."""
    settled = model.settled(samples, **asked)
    text = model.transcribe(samples, **settled) if text is None else text
    if not text.strip():
        return None
    inputs = model.to_inputs(samples, text=text, **settled)
    _, cache = model.run_with_cache(**inputs, names_filter=_PATTERNS)
    first = len(model.prompt(**settled))  # its own rows follow no speech
    n_audio = encoder_length(max(1, len(samples) * FRAMES_PER_SECOND // SAMPLE_RATE))
    patterns = [
        cache[f"decoder.{layer}.cross_attn.hook_pattern"][0, :, first:, :n_audio]
        for layer in range(model.config.decoder.n_layers)
    ]
    return alignment_scores(torch.stack(patterns))
