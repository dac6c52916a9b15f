"""What a probe is to be compared with: the sound itself, and a model that learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from tqdm.auto import tqdm

from hooked_asr.audio import log_mel_and_mask
from hooked_asr.manifests import Clip
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.probes.errors import ProbeError

Model = TypeVar("Model", bound=Recogniser)


def log_mel_features(
    model: Recogniser,
    clips: Sequence[Any],
    *,
    sample_rate: int | None = None,
    progress: bool = True,
) -> Float32[np.ndarray, "clip two_n_mels"]:
    """Mean and standard deviation of each log-mel band over a clip's own frames, padding left out.

    `clips`: paths, samples (at `sample_rate` Hz, 16 kHz if not said), or what `read_clips` gives.

    Raises `AudioError` for a clip that cannot be read or is longer than the model's window.
    """
    rows = []
    for clip in tqdm(clips, desc="log-mel", unit="clip", disable=not progress):
        source = clip.audio_path if isinstance(clip, Clip) else clip
        mel, mask = log_mel_and_mask(source, model.working_extractor, sample_rate)
        heard = mel[0, :, mask[0].bool()]
        rows.append(torch.cat([heard.mean(1), heard.std(1, correction=0)]).numpy())
    return np.stack(rows)


def random_weights(model: Model, seed: int = 0, how: str = "initial") -> Model:
    """A copy of a model with random weights, in eval mode: what its shape alone lets tell.

    - `how`: "initial": weights as they are drawn before training (`init_weights`), position
      sinusoids as ever. "permuted": the numbers of each weight matrix, bias and norm in another
      order, so that each keeps its scale; the encoder's positions stay. Commonly the stronger
      baseline of the two, as trained weights are larger than initial ones.

    The random state of the caller is left as it was.

    Raises `ProbeError` for another way.
    """
    if how not in ("initial", "permuted"):
        raise ProbeError(f"random weights are 'initial' or 'permuted'; got {how!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(
            model.config,
            feature_extractor=model.feature_extractor,
            tokenizer=model.tokenizer,
            generation_config=model.generation_config,
            hf_fields=model.hf_fields,
            name=f"{model.name} ({how} random weights, seed {seed})",
        )
        if how == "permuted":
            _permute(fresh, model)
    return fresh.to(model.device, model.dtype).eval()


@torch.no_grad()
def _permute(fresh: Recogniser, model: Recogniser) -> None:
    kept = model.encoder_pos_embed.weight
    learnt = dict(model.named_parameters())
    for name, weight in fresh.named_parameters():
        numbers = learnt[name].flatten().cpu()
        if learnt[name] is not kept:
            numbers = numbers[torch.randperm(numbers.numel())]
        weight.copy_(numbers.view_as(weight))
