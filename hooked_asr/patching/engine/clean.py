"""The clean run, and what of it every row reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.patching.engine.stages import Stages
from hooked_asr.shapes import Logits

Stream = Shaped[Tensor, "..."]  # a batch of what enters some stage: rows, then what is there


class CleanRun:
    """One untouched run: the streams that rows join from, and keys and values that they share.

    - `streams`: what enters each stage, where a row joins there.
    - `audio`: the encoder's output; `past`: the decoder's keys and values, and those of the audio.
    - `logits`: at the positions read alone.
    """

    def __init__(
        self, model: Any, inputs: Mapping[str, Any], reads: range, wanted: Collection[int]
    ) -> None:
        self.model, self.inputs, self.reads = model, inputs, reads
        self.stages = Stages(model.config)
        self.streams: dict[int, Tensor] = {}
        self._wanted = wanted
        self.tokens = inputs["tokens"].to(model.device)
        self._keep(self.stages.embed, self.tokens)
        self.audio = self._encode()
        self.past = KVCache(model.config.decoder.n_layers, self.tokens.shape[1])
        self.logits = self._decode()

    @property
    def sizes(self) -> dict[str, int]:
        """How many entries of a batch one row takes."""
        return sizes_of(self.inputs)

    def _encode(self) -> Stream | None:
        mel, mel_mask = self.inputs.get("mel"), self.inputs.get("mel_mask")
        stages = self.stages
        if mel is None:
            audio = self.inputs.get("audio")
            return None if audio is None else audio.to(self.model.device, self.model.dtype)
        self._keep(stages.front_end, mel)
        if not any(map(stages.in_encoder, self._wanted)):
            return self.model.encode(mel, mel_mask)
        stream: Tensor = self.model.encode(mel, mel_mask, stop_at=0)
        for layer, stage in enumerate(stages.encoder):
            self._keep(stage, stream)
            stream = self.model.encode(stream, mel_mask, start_at=layer, stop_at=layer + 1)
        self._keep(stages.encoder_tail, stream)
        return self.model.encode(stream, mel_mask, start_at=len(stages.encoder))

    def _decode(self) -> Logits:
        n_layers = len(self.stages.decoder)
        hooks = [
            (f"decoder.{layer}.hook_resid_pre", self._keep_entering) for layer in range(n_layers)
        ]
        with self.model.hooks(hooks):
            stream = self.model.decode(
                self.tokens,
                self.audio,
                past=self.past,
                stop_at=n_layers,
                attention_mask=self.inputs.get("attention_mask"),
                mel_mask=self.inputs.get("mel_mask"),
            )
        self._keep(self.stages.tail, stream)
        return unembedded(self.model, stream, self.reads)

    def _keep_entering(self, x: Stream, hook: Any) -> None:
        self._keep(self.stages.of(hook.name), x)

    def _keep(self, stage: int, stream: Stream) -> None:
        if stage in self._wanted:
            self.streams[stage] = stream


def unembedded(model: Any, stream: Stream, places: range) -> Logits:
    """Logits at some places of the stream that leaves the last layer."""
    here = stream[:, places.start : places.stop : places.step]
    logits: Tensor = model.unembed(model.decoder_final_ln(here))
    return logits


def sizes_of(inputs: Mapping[str, Any]) -> dict[str, int]:
    """How many entries of a batch some inputs make: rows of tokens, and clips."""
    source = inputs.get("mel", inputs.get("audio"))
    return {"batch": len(inputs["tokens"]), "clip": 0 if source is None else len(source)}
