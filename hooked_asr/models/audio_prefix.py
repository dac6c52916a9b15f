"""A decoder that hears the audio as a prefix: among the tokens of its own stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.components.attention import RotaryAttention
from hooked_asr.components.block import Block
from hooked_asr.components.embed import Projector
from hooked_asr.components.kv_cache import KVCache
from hooked_asr.components.rotary import rotation
from hooked_asr.config import ConfigError, PrefixConfig
from hooked_asr.hooks import HookPoint
from hooked_asr.models import inputs as check
from hooked_asr.models.audio_spans import AudioSpan, audio_spans, frame_counts
from hooked_asr.models.encoder_decoder import HookedEncoderDecoder
from hooked_asr.models.inputs import InputError
from hooked_asr.shapes import Audio, Mask, MelMask, Positions, Resid, Tokens
from hooked_asr.timing import encoder_length, pooled_length


class PrefixEncoderDecoder(HookedEncoderDecoder):
    """Encoder -> pool -> norm -> projector -> the places of the audio token in the prompt.

    A prompt may hold several clips, or none: the encoder's axis is `clip`, in the order in which
    the prompts name them, the decoder's is `batch`. A clip's real frames, as `mel_mask` gives them,
    make as many pooled positions as it has audio tokens. Other positions are rotations.
    """

    def _add_decoder(self) -> None:
        own, d_enc = self.config.decoder, self.config.encoder.d_model
        self.hook_encoder_pool = HookPoint()
        self.projector = Projector(d_enc, own.d_model)
        self.decoder = nn.ModuleList(Block(own, RotaryAttention(own)) for _ in range(own.n_layers))

    @property
    def prefix(self) -> PrefixConfig:
        if self.config.prefix is None:
            raise ConfigError("this model reads audio as a prefix: its config must say how")
        return self.config.prefix

    def pool(self, resid: Float[Tensor, "*axes audio d_enc"]) -> Float[Tensor, "*axes _ d_enc"]:
        """The encoder's stream as its final norm reads it: averaged two by two."""
        size = self.prefix.pool
        whole = resid[..., : resid.shape[-2] // size * size, :]
        return reduce(whole, "... (pooled size) d_enc -> ... pooled d_enc", "mean", size=size)

    def _encoder_tail(self, resid: Resid) -> Audio:
        # The reference's kernel, in its layout: it rounds otherwise than a mean.
        pooled = F.avg_pool1d(resid.mT, self.prefix.pool).mT
        return super()._encoder_tail(self.hook_encoder_pool(pooled))

    def audio_positions(self, inputs: Mapping[str, Any]) -> list[AudioSpan]:
        """Where each clip of `to_inputs`' (or `forward`'s) inputs stands, clip after clip.

        Raises `InputError` where clips and audio tokens do not fit.
        """
        places = inputs["tokens"] == self.prefix.audio_token
        source = inputs.get("mel", inputs.get("audio"))
        n_clips = 0 if source is None else len(source)
        return audio_spans(places, self._lengths(inputs.get("mel_mask"), n_clips))

    def _encoder_mask(self, n_clips: int, mel_mask: MelMask | None) -> Mask | None:
        if mel_mask is None:
            return None
        check.mel_mask(mel_mask, self.config, n_clips)
        n_ctx = self.config.encoder.n_ctx
        lengths = [encoder_length(n) for n in frame_counts(mel_mask)]
        if min(lengths) == n_ctx:
            return None
        real = torch.arange(n_ctx)[None] < torch.tensor(lengths)[:, None]
        return real.to(self.device)[:, None, None]

    def _token_stream(
        self, tokens: Tokens, audio: Audio | None, position_ids: Positions, mel_mask: MelMask | None
    ) -> Resid:
        embed = self.embed(tokens)
        if audio is not None:
            places = tokens == self.prefix.audio_token
            embed = embed.masked_scatter(places[..., None], self._features(audio, places, mel_mask))
        resid: Resid = self.hook_decoder_embed(embed)
        return resid

    def _features(
        self, audio: Audio, places: Bool[Tensor, "batch pos"], mel_mask: MelMask | None
    ) -> Float[Tensor, "_ d_model"]:
        """What stands in the places of the audio tokens, clip after clip."""
        audio = check.audio(audio, self.config, len(audio)).to(self.device, self.dtype)
        lengths = self._lengths(mel_mask, len(audio))
        audio_spans(places, lengths)  # refuses clips that do not fit
        projected = self.projector(audio)
        return torch.cat([one[:n] for one, n in zip(projected, lengths, strict=True)])

    def _lengths(self, mel_mask: MelMask | None, n_clips: int) -> list[int]:
        """Pooled positions of each clip."""
        if mel_mask is None or not n_clips:
            return [self.config.n_pooled] * n_clips
        check.mel_mask(mel_mask, self.config, n_clips)
        return [pooled_length(n) for n in frame_counts(mel_mask)]

    def _around(
        self, resid: Resid, audio: Audio | None, position_ids: Positions, past: KVCache | None
    ) -> dict[str, Any]:
        own = self.config.decoder
        if own.rotary_base is None:
            raise ConfigError(
                "a decoder with audio as a prefix has rotary positions: say their base"
            )
        return {"rotation": rotation(position_ids, own.d_head, own.rotary_base, resid.dtype)}

    def _needed(self, given: dict[str, Any], start: str | None, stop: str | None) -> set[str]:
        if start == "decoder":
            return {"resid"}
        tokens = given["tokens"]
        if tokens is None or stop == "encoder" or start:
            return super()._needed(given, start, stop)
        places = tokens == self.prefix.audio_token
        mask = given.get("attention_mask")
        if mask is not None and mask.shape == places.shape and (places & (mask == 0)).any():
            raise InputError("attention_mask hides an audio token, but every one is heard")
        n_audio_tokens = int(places.sum())
        heard = given["mel"] is not None or given["audio"] is not None
        if heard and not n_audio_tokens:
            raise InputError(
                "audio was given, but no prompt has an audio token: give text alone, or make the "
                "prompt with model.to_inputs(audio, prompt)"
            )
        if n_audio_tokens and not heard:
            raise InputError(
                f"the prompts have {n_audio_tokens} audio tokens, but no audio was given: give "
                "mel, or an encoder output as audio"
            )
        return super()._needed(given, start, stop) if heard else {"tokens"}
