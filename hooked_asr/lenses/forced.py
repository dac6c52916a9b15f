"""From a recording to the run that a lens is taken on: one transcript forced behind its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.audio import SAMPLE_RATE, AudioSource, load_audio
from hooked_asr.generation import greedy


@dataclass(frozen=True, eq=False)
class ForcedRun:
    """A run on one transcript, and what it was made of.

    - `inputs`: of a forward, the encoder's output among them. The first `n_prompt` tokens are the
      prompt; the position before the transcript's first token is `n_prompt - 1`.
    - `asked`: how the model was asked. `seconds`: how long the recording is.
    """

    inputs: Mapping[str, Tensor]
    n_prompt: int
    text: str
    asked: Mapping[str, Any]
    seconds: float


@torch.no_grad()
def forced_run(model: Any, audio: AudioSource, text: str | None = None, **prompt: Any) -> ForcedRun:
    """The run on a recording, teacher-forced with a transcript.

    - `text`: the transcript; if not given the model's own, greedily decoded by the checkpoint's
      rules, and its very tokens.
    - `prompt`: how the model is asked (`language`, or Qwen2-Audio's `prompt`); what is not given is
      told from the audio, or the model's usual.

    Raises `AudioError` for a recording that cannot be read or is longer than a window, and
    `InputError` where the model has no room for the text.
    """
    samples = load_audio(audio)
    asked = model.settled(samples, **prompt)
    alone = model.encoded(model.to_inputs(samples, **asked))
    n_prompt = alone["tokens"].shape[1]
    if text is None:
        (said,) = greedy(model, alone)
    else:
        said = model.to_inputs(samples, text=text, **asked)["tokens"][0, n_prompt:].tolist()
    heard = model.text_of(said) if text is None else text
    return ForcedRun(_behind(alone, said), n_prompt, heard, asked, len(samples) / SAMPLE_RATE)


def _behind(prompt: Mapping[str, Tensor], said: Sequence[int]) -> dict[str, Tensor]:
    """The prompt's inputs, with what is said behind it."""
    rows = {"tokens": torch.tensor([list(said)], dtype=torch.long)}
    if prompt.get("attention_mask") is not None:
        rows["attention_mask"] = torch.ones(1, len(said), dtype=torch.long)
    longer = {
        name: torch.cat([prompt[name], new.to(prompt[name])], 1) for name, new in rows.items()
    }
    return {**prompt, **longer}
