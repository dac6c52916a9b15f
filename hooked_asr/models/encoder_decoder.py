"""The hooked encoder-decoder: one forward, that starts and stops anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hooked_asr.components.attention import Attention, looking_back
from hooked_asr.components.block import CrossBlock, EncoderBlock
from hooked_asr.components.embed import PositionEmbedding, Unembed, sinusoids
from hooked_asr.components.front_end import Conv, InnerConv
from hooked_asr.components.kv_cache import KVCache
from hooked_asr.components.norm import norm
from hooked_asr.config import ModelConfig
from hooked_asr.hooks import HookedModule, HookPoint
from hooked_asr.models import inputs as check
from hooked_asr.models.inputs import InputError
from hooked_asr.names import Selector, hook_table, select
from hooked_asr.shapes import Audio, Logits, Mask, Mel, MelMask, Positions, Resid, TokenMask, Tokens


class HookedEncoderDecoder(HookedModule):
    """A speech recogniser: log-mel frames -> encoder -> decoder -> logits.

    As it stands, its decoder has cross-attention to the encoder's output (Whisper); in a
    `audio_prefix.PrefixEncoderDecoder` that output stands among the decoder's own tokens.

    `HookedEncoderDecoder(config)` has fresh weights, drawn as the reference draws them. It is an
    ordinary `nn.Module`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d_enc, d_model = config.encoder.d_model, config.decoder.d_model
        self.hook_mel = HookPoint()
        self.conv1 = InnerConv(config.front_end.n_mels, d_enc)
        self.conv2 = Conv(d_enc, d_enc, stride=2)
        self.hook_embed = HookPoint()
        self.encoder_pos_embed = PositionEmbedding(config.encoder.n_ctx, d_enc, trained=False)
        self.hook_pos_embed = HookPoint()
        self.encoder = nn.ModuleList(
            EncoderBlock(config.encoder, Attention(config.encoder))
            for _ in range(config.encoder.n_layers)
        )
        self.encoder_final_ln = norm(config.encoder)
        self.hook_encoder_out = HookPoint()
        self.embed = nn.Embedding(config.d_vocab, d_model)
        self.hook_decoder_embed = HookPoint()
        self._add_decoder()
        self.decoder_final_ln = norm(config.decoder)
        self.unembed = Unembed(d_model, config.d_vocab)
        self._name_hook_points(hook_table(config))
        self.tie_weights()
        self.init_weights()

    # --- The forward ------------------------------------------------------------------------------

    def forward(
        self,
        mel: Mel | None = None,
        tokens: Tokens | None = None,
        *,
        mel_mask: MelMask | None = None,
        attention_mask: TokenMask | None = None,
        audio: Audio | None = None,
        resid: Resid | Audio | None = None,
        start_at: str | None = None,
        stop_at: str | None = None,
    ) -> Tensor:
        """Logits `[batch pos d_vocab]`: at each position, of the token that comes next.

        - `attention_mask` `[batch pos]`: 1 for a token, 0 for padding before or behind them.
        - `mel_mask` `[clip frame]`: 1 for a real frame, 0 for padding behind them. Whisper hears
          the whole window, and takes none.
        - `audio` in place of `mel`: an encoder output, as `encode` gives it.
        - `start_at="decoder.2"`: `resid` enters that layer (with `audio`, for a decoder with
          cross-attention), and nothing before it runs.
        - `stop_at="encoder.3"`: return the residual stream that would enter that layer; the number
          of layers itself means the stream behind the last one, before the final norm.

        Raises `InputError` for inputs the model cannot take.
        """
        start_stack, start = check.place(start_at, "start_at")
        stop_stack, stop = check.place(stop_at, "stop_at")
        masks: dict[str, Any] = {"mel_mask": mel_mask, "attention_mask": attention_mask}
        given: dict[str, Any] = {"mel": mel, "tokens": tokens, "audio": audio, "resid": resid}
        self._check_inputs({**given, **masks}, start_stack, stop_stack)
        if start_stack == "decoder":
            return self.decode(
                given["resid"], given["audio"], start_at=start, stop_at=stop, **masks
            )
        encoded = given["audio"]
        source = given["mel"] if start is None else given["resid"]
        if source is not None:
            if stop_stack == "encoder":
                return self.encode(source, mel_mask, start, stop)
            encoded = self.encode(source, mel_mask, start)
        return self.decode(given["tokens"], encoded, stop_at=stop, **masks)

    def encode(
        self,
        mel: Mel | Resid,
        mel_mask: MelMask | None = None,
        start_at: int | None = None,
        stop_at: int | None = None,
    ) -> Float[Tensor, "_ audio d_enc"]:
        """The encoder's output `[batch audio d_enc]`, behind its final norm.

        With `start_at`, `mel` is the residual stream `[batch audio d_enc]` that enters that layer.
        With `stop_at`, returns the stream that would enter that layer.
        """
        start, stop = self._span("encoder", start_at, stop_at)
        if start_at is None:
            check.mel(mel, self.config)
            resid = self._front_end(mel.to(self.device, self.dtype))
        else:
            resid = self._entering("encoder", start, mel)
        mask = self._encoder_mask(resid.shape[0], mel_mask)
        for block in self.encoder[start:stop]:
            resid = block(resid, mask=mask)
        if stop_at is not None:
            return resid
        return self._encoder_tail(resid)

    def decode(
        self,
        tokens: Tokens | Resid,
        audio: Audio | None = None,
        start_at: int | None = None,
        stop_at: int | None = None,
        past: KVCache | None = None,
        attention_mask: TokenMask | None = None,
        position_ids: Positions | None = None,
        mel_mask: MelMask | None = None,
    ) -> Logits | Resid:
        """Logits `[batch pos d_vocab]` for tokens, given an encoder output.

        - With `start_at`, `tokens` is the residual stream `[batch pos d_model]` that enters that
          layer. With `stop_at`, returns the stream that would enter that layer.
        - With `past`, only the tokens that are new since the last call are given;
          `attention_mask` then covers those in the past too.
        - `position_ids` `[batch pos]` (or one row for all): the position that each token counts as;
          by default its place in the row, padding included.
        """
        start, stop = self._span("decoder", start_at, stop_at)
        offset = past.length if past else 0
        with self.clock.at(offset):
            if start_at is None:
                check.tokens(tokens, self.config, offset)
                tokens = tokens.to(self.device)
                position_ids = self._positions(position_ids, tokens, offset)
                resid = self._token_stream(tokens, audio, position_ids, mel_mask)
            else:
                resid = self._entering("decoder", start, tokens)
                position_ids = self._positions(position_ids, resid, offset)
            if past:
                past.check(len(self.decoder), *resid.shape[:2])
            mask = self._decoder_mask(attention_mask, resid, offset)
            around = self._around(resid, audio, position_ids, past)
            pasts = past.layers if past else [None] * len(self.decoder)
            for block, kept in list(zip(self.decoder, pasts, strict=True))[start:stop]:
                resid = block(resid, past=kept, mask=mask, **around)
            return resid if stop_at is not None else self.unembed(self.decoder_final_ln(resid))

    def encoded(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs of `forward`, with the encoder's output in place of the log-mel frames.

        For many decoder runs on one run of the encoder. Text alone stays as it is.
        """
        rest = {name: value for name, value in inputs.items() if name != "mel"}
        if inputs.get("mel") is None:
            return rest
        mel_mask = {"mel_mask": inputs["mel_mask"]} if "mel_mask" in inputs else {}
        return {"audio": self.encode(inputs["mel"], **mel_mask), **rest}

    def _positions(
        self, position_ids: Positions | None, rows: Shaped[Tensor, "batch pos ..."], offset: int
    ) -> Positions:
        if position_ids is None:
            return torch.arange(offset, offset + rows.shape[1], device=self.device)[None]
        check.position_ids(position_ids, rows)
        return position_ids.to(self.device)

    def _front_end(self, mel: Mel) -> Resid:
        mel = self.hook_mel((mel.clone() if self.hook_mel.active else mel).mT).mT
        embed = self.hook_embed(self.conv2(self.conv1(mel)).mT)
        position = self.encoder_pos_embed.weight
        return embed + _as_activation(position, self.hook_pos_embed, embed)

    def _entering(self, stack: str, layer: int, resid: Resid) -> Resid:
        """A residual stream handed in by the caller, who keeps it as it is."""
        blocks = getattr(self, stack)
        own = self.config.stack(stack)
        if resid.shape[-1] != own.d_model:
            raise InputError(
                f"a residual stream of the {stack} is {own.d_model} wide; got {list(resid.shape)}"
            )
        resid = resid.to(self.device, self.dtype)
        hooked = layer < own.n_layers and blocks[layer].hook_resid_pre.active
        return resid.clone() if hooked else resid

    # --- How the decoder reads the audio: by cross-attention --------------------------------------

    def _add_decoder(self) -> None:
        """The modules between the encoder's final norm and the decoder's."""
        own, d_enc = self.config.decoder, self.config.encoder.d_model
        self.decoder_pos_embed = PositionEmbedding(own.n_ctx, own.d_model)
        self.hook_decoder_pos_embed = HookPoint()
        self.decoder = nn.ModuleList(CrossBlock(own, d_enc) for _ in range(own.n_layers))

    def pool(self, resid: Float[Tensor, "*axes audio d_enc"]) -> Float[Tensor, "*axes _ d_enc"]:
        """The encoder's stream as its final norm reads it: here as it is."""
        return resid

    def _encoder_tail(self, resid: Resid) -> Audio:
        """From behind the encoder's last layer to its output."""
        out: Audio = self.hook_encoder_out(self.encoder_final_ln(resid))
        return out

    def _token_stream(
        self, tokens: Tokens, audio: Audio | None, position_ids: Positions, mel_mask: MelMask | None
    ) -> Resid:
        """What enters the decoder's first layer."""
        embed = self.hook_decoder_embed(self.embed(tokens))
        position = self.decoder_pos_embed(position_ids)
        return embed + _as_activation(position, self.hook_decoder_pos_embed, embed)

    def _around(
        self, resid: Resid, audio: Audio | None, position_ids: Positions, past: KVCache | None
    ) -> dict[str, Any]:
        """What every decoder block is given beside its stream."""
        if audio is None and past and past.heard:  # its keys and values are kept
            return {"audio": None}
        audio = check.audio(audio, self.config, resid.shape[0])
        return {"audio": audio.to(self.device, self.dtype)}

    def _encoder_mask(self, n_clips: int, mel_mask: MelMask | None) -> Mask | None:
        """Where the encoder's queries may look; None for everywhere."""
        if mel_mask is not None:
            raise InputError("this model hears the whole window, padding and all: no mel_mask")
        return None

    def _decoder_mask(
        self, attention_mask: TokenMask | None, resid: Resid, offset: int
    ) -> Mask | None:
        """Where the decoder's queries may look; None for all that comes before."""
        if attention_mask is None:
            return None
        n_new = resid.shape[1]
        check.attention_mask(attention_mask, resid.shape[0], offset + n_new)
        real = attention_mask.to(self.device, torch.bool)
        if real.all():
            return None
        return looking_back(n_new, offset + n_new, real.device) & real[:, None, None]

    # --- What goes in -----------------------------------------------------------------------------

    def _span(self, stack: str, start: int | None, stop: int | None) -> tuple[int, int]:
        n_layers = self.config.stack(stack).n_layers
        first, last = start or 0, n_layers if stop is None else stop
        if not 0 <= first <= last <= n_layers:
            raise InputError(
                f"the {stack} has layers 0 to {n_layers - 1}, and {n_layers} stands for its end; "
                f"cannot run from {first} to {last}"
            )
        return first, last

    def _check_inputs(self, given: dict[str, Any], start: str | None, stop: str | None) -> None:
        """Exactly the inputs that a run between these places takes."""
        if (start, stop) == ("decoder", "encoder") or (
            given["audio"] is not None and stop == "encoder"
        ):
            raise InputError("the encoder comes before the decoder: this run would stop first")
        needed = self._needed(given, start, stop)
        masks = ("mel_mask", "attention_mask")  # which may always be left out
        got = {name for name, value in given.items() if value is not None and name not in masks}
        if got != needed:
            raise InputError(
                f"this run takes {' and '.join(sorted(needed))}; "
                f"got {' and '.join(sorted(got)) or 'nothing'}"
            )

    def _needed(self, given: dict[str, Any], start: str | None, stop: str | None) -> set[str]:
        if start == "decoder":
            return {"resid", "audio"}
        source = "resid" if start else "mel" if given["audio"] is None else "audio"
        return {source} if stop == "encoder" else {source, "tokens"}

    # --- Weights ----------------------------------------------------------------------------------

    def tie_weights(self) -> None:
        """Make unembedding and embedding one parameter, where the config says so."""
        if self.config.tied_embeddings:
            self.unembed.weight = self.embed.weight

    @torch.no_grad()
    def init_weights(self, std: float = 0.02) -> None:
        """Draw fresh weights: normal matrices, zero biases, sinusoid encoder positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding | PositionEmbedding):
                module.weight.normal_(std=std)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                module.bias.zero_()
        encoder = self.config.encoder
        self.encoder_pos_embed.weight.copy_(sinusoids(encoder.n_ctx, encoder.d_model))

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.unembed.weight.T

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The decoder's positions; the encoder's are `encoder_pos_embed.weight`."""
        return self.decoder_pos_embed.weight

    # --- Planning ---------------------------------------------------------------------------------

    def cache_bytes(
        self,
        batch: int = 1,
        n_pos: int = 1,
        names_filter: Selector = None,
        dtype: torch.dtype | None = None,
        n_clips: int | None = None,
    ) -> int:
        """Bytes that `run_with_cache` would keep for `batch` rows of `n_pos` tokens each.

        `n_clips`: clips in all of these rows; one for each if not said.

        An upper bound: a stream that leaves one layer and enters the next is kept once, but
        counted twice here.
        """
        specs = [self.hook_table[name] for name in select(names_filter, self.hook_table)]
        values = sum(math.prod(spec.shape(self.config, batch, n_pos, n_clips)) for spec in specs)
        return values * (dtype or self.dtype).itemsize


def _as_activation(
    position: Float[Tensor, "*_ pos d_model"], hook: HookPoint, embed: Resid
) -> Float[Tensor, "... pos d_model"]:
    """Positions are weights: a hook function gets a copy of them for each clip to edit."""
    return hook(position.expand_as(embed).clone()) if hook.active else position
