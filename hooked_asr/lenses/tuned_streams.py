"""The streams that a tuned lens learns from: of a frozen model, kept while they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_asr.models.audio_spans import frame_counts
from hooked_asr.patching.operations import Inputs
from hooked_asr.timing import encoder_length

MEMORY = 2**30  # bytes of streams that are kept; others are computed again


def sites_of(stack: str, n_layers: int) -> list[str]:
    """The hooks whose streams are translated, in the forward's order: all but the last.

    >>> sites_of("encoder", 2)
    ['encoder.0.hook_resid_pre', 'encoder.0.hook_resid_post']
    """
    behind = [f"{stack}.{layer}.hook_resid_post" for layer in range(n_layers - 1)]
    return [f"{stack}.0.hook_resid_pre", *behind]


def layer_of(site: str) -> str:
    """What the place of a site is called: a layer's number, or "embed".

    >>> layer_of("decoder.3.hook_resid_post"), layer_of("decoder.0.hook_resid_pre")
    ('3', 'embed')
    """
    return "embed" if site.endswith("pre") else site.split(".")[1]


@dataclass(frozen=True, eq=False)
class RunStreams:
    """One clip's run.

    - `streams`: at each site and, last, behind the last layer, as they came.
    - `real`: which of their rows are to be learned from.
    - `said`: the decoder's positions that count: all of a Whisper's; those behind the audio, where
      the prompt holds it, for what is said there is no prediction of the model's.
    - `rest`: the run's inputs but its log-mel frames.
    """

    streams: Float[Tensor, "depth clip pos d_model"]
    real: Bool[Tensor, "clip pos"]
    said: Bool[Tensor, "1 _"]
    rest: Inputs

    @property
    def rows(self) -> Float[Tensor, "depth row d_model"]:
        return self.streams[:, self.real]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.streams.numel() * self.streams.element_size()


class Streams(Sequence[RunStreams]):
    """The runs' streams, each computed when it is asked for, and by itself, so that it is the same
    whenever that is.

    - `runs`: give each run's inputs, of one row.
    - `memory`: bytes for streams that are kept.
    """

    def __init__(
        self, model: Any, stack: str, runs: Sequence[Callable[[], Inputs]], memory: int = MEMORY
    ) -> None:
        self.model, self.stack, self.runs = model, stack, runs
        self._left = memory
        self._kept: dict[int, RunStreams] = {}

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, i: Any) -> Any:
        if i in self._kept:
            return self._kept[i]
        made = streams_of(self.model, self.stack, self.runs[i]())
        if made.size <= self._left:
            self._left -= made.size
            self._kept[i] = made
        return made


@torch.no_grad()
def streams_of(model: Any, stack: str, inputs: Inputs) -> RunStreams:
    """The streams of one run, with none of the hooks that are attached to the model."""
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    said = _said(model, inputs)
    rest = {name: value for name, value in inputs.items() if name != "mel"}
    with model.unhooked():
        if stack == "encoder":
            streams, real = _encoder(model, inputs)
            return RunStreams(streams, real, said, rest)
        n_layers = model.config.decoder.n_layers
        names = [*sites_of(stack, n_layers), f"decoder.{n_layers - 1}.hook_resid_post"]
        _, cache = model.run_with_cache(**inputs, names_filter=names)
    streams = torch.stack([cache[name] for name in names])
    return RunStreams(streams[:, said][:, None], said[said][None], said, rest)


def _said(model: Any, inputs: Inputs) -> Bool[Tensor, "1 _"]:
    tokens, mask = inputs["tokens"], inputs.get("attention_mask")
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    if model.config.prefix is None:
        return real
    places = tokens == model.config.prefix.audio_token
    behind: Tensor = places.flip(-1).cumsum(-1).flip(-1) == 0
    return real & behind


def _encoder(
    model: Any, inputs: Inputs
) -> tuple[Float[Tensor, "depth clip audio d_enc"], Bool[Tensor, "clip audio"]]:
    """Each layer once; padding that is masked in the encoder is nothing to learn from."""
    mel_mask = inputs.get("mel_mask")
    streams = [model.encode(inputs["mel"], mel_mask, stop_at=0)]
    for layer in range(model.config.encoder.n_layers):
        streams.append(model.encode(streams[-1], mel_mask, start_at=layer, stop_at=layer + 1))
    n_clips, n_audio = streams[0].shape[:2]
    lengths = [n_audio] * n_clips
    if mel_mask is not None:
        lengths = [encoder_length(n) for n in frame_counts(mel_mask)]
    real = torch.arange(n_audio)[None] < torch.tensor(lengths)[:, None]
    return torch.stack(streams), real.to(streams[0].device)
