"""How sure a model is of its transcripts: what is known of them without a look inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_asr.features.forcing import Asking, Forced, forced_rows, padded
from hooked_asr.features.loading import Heard, Unusable, heard
from hooked_asr.generation import end_tokens
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.probes.errors import ProbeError
from hooked_asr.speech import token_compression_ratio
from hooked_asr.weights.fingerprint import fingerprint

CONFIDENCE = ("avg_logprob", "compression_ratio")


def confidence_features(
    model: Any,
    clips: Clips,
    *,
    out: str | os.PathLike[str] | None = None,
    language: str | None = None,
    batch_size: int = 8,
    progress: bool = True,
    **prompt: Any,
) -> Float64[np.ndarray, "clip two"]:
    """What users of a recogniser go by: how likely its transcripts are, and how repetitive.

    Columns, in the order of `CONFIDENCE`: the mean log-probability of a token (nats), the end token
    included, and `token_compression_ratio`. Both come from one forward forced with the transcript,
    so that models of every family have them. No rule of decoding acts on the probabilities, as it
    does on those of a `Transcript`.

    - `clips`: as of `read_clips`; each with what the model heard in it as its text, "" for nothing.
    - `out`: a folder where an interrupted run goes on; None keeps nothing.
    - `language`: of clips that name none. `prompt`: how the model was asked, as of `harvest`.

    Raises `ProbeError` for a clip without a transcript, or that cannot be read; `RecordsError` for
    an `out` that holds other work.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022),
    section 4.5, where both decide whether a transcript is to be tried again.
    """
    read = read_clips(clips)
    starts = {
        str(start): read[start : start + batch_size] for start in range(0, len(read), batch_size)
    }
    asking = Asking("text", language, prompt)
    done = work_through(
        list(starts),
        lambda key: _of_batch(model, starts[key], asking),
        folder=out,
        asked={
            "weights (hash)": fingerprint(model),
            "clips (hash)": clips_hash(read),
            "language": language,
            "batch_size": batch_size,
            **prompt,
        },
        progress=progress,
        name="confidence",
        unit="batch",
    )
    return np.array([row for rows in done.results.values() for row in rows], dtype=np.float64)


@torch.no_grad()
def _of_batch(model: Any, clips: Sequence[Clip], asking: Asking) -> list[list[float]]:
    read = [_usable(heard(model, clip, True, asking.prompt)) for clip in clips]
    masks = {}
    if model.config.prefix:
        masks["mel_mask"] = torch.cat([one.mel_mask for one in read]).to(model.device)
    encoded = model.encode(torch.cat([one.mel for one in read]), **masks)
    rows: list[Forced] = [_usable(one) for one in forced_rows(model, read, encoded, asking)]
    logits = model.decode(padded(model, [row.tokens for row in rows]), encoded, **masks)
    return [_of_row(model, row, own) for row, own in zip(rows, logits, strict=True)]


def _of_row(model: Any, row: Forced, logits: Float[Tensor, "pos d_vocab"]) -> list[float]:
    said = row.tokens[row.n_prompt :]
    ends = end_tokens(model.generation_config)
    logprobs = logits[row.n_prompt - 1 : len(row.tokens)].float().log_softmax(-1)
    each = [own[token].item() for own, token in zip(logprobs, said, strict=False)]
    each += [logprobs[-1, ends].max().item()] if ends else []
    ratio = token_compression_ratio([*said, *ends[:1]], model.config.d_vocab)
    return [sum(each) / max(1, len(each)), ratio]


def _usable(one: Heard | Forced | Unusable) -> Any:
    if isinstance(one, Unusable):
        raise ProbeError(f"{one.reason}; give each clip, as its text, what the model heard in it")
    return one
