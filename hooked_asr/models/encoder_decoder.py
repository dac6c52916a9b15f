"""The hooked encoder-decoder: one forward, that starts and stops anywhere."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_asr.components.block import Block, CrossBlock
from hooked_asr.components.embed import PositionEmbedding, Unembed, sinusoids
from hooked_asr.components.front_end import Conv, InnerConv
from hooked_asr.components.kv_cache import KVCache
from hooked_asr.components.norm import LayerNorm
from hooked_asr.config import ModelConfig
from hooked_asr.errors import HookedASRError
from hooked_asr.hooks import HookedModule, HookPoint
from hooked_asr.names import Selector, hook_table, select
from hooked_asr.shapes import Audio, Logits, Mel, Resid, Tokens


class InputError(HookedASRError):
    """An input the model cannot take: what it was, what the model takes."""


class HookedEncoderDecoder(HookedModule):
    """A speech recogniser: log-mel frames -> encoder -> decoder with cross-attention -> logits.

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
        self.encoder = nn.ModuleList(Block(config.encoder) for _ in range(config.encoder.n_layers))
        self.encoder_final_ln = LayerNorm(d_enc, config.encoder.norm_eps)
        self.hook_encoder_out = HookPoint()
        self.embed = nn.Embedding(config.d_vocab, d_model)
        self.hook_decoder_embed = HookPoint()
        self.decoder_pos_embed = PositionEmbedding(config.decoder.n_ctx, d_model)
        self.hook_decoder_pos_embed = HookPoint()
        self.decoder = nn.ModuleList(
            CrossBlock(config.decoder, d_enc) for _ in range(config.decoder.n_layers)
        )
        self.decoder_final_ln = LayerNorm(d_model, config.decoder.norm_eps)
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
        audio: Audio | None = None,
        resid: Resid | Audio | None = None,
        start_at: str | None = None,
        stop_at: str | None = None,
    ) -> Tensor:
        """Logits `[batch pos d_vocab]`: at each position, of the token that comes next.

        - `audio` in place of `mel`: an encoder output, as `encode` gives it.
        - `start_at="decoder.2"`: `resid` enters that layer (with `audio`, for the decoder), and
          nothing before it runs.
        - `stop_at="encoder.3"`: return the residual stream that would enter that layer; the number
          of layers itself means the stream behind the last one, before the final norm.

        Raises `InputError` for inputs the model cannot take.
        """
        start_stack, start = self._place(start_at, "start_at")
        stop_stack, stop = self._place(stop_at, "stop_at")
        given: dict[str, Any] = {"mel": mel, "tokens": tokens, "audio": audio, "resid": resid}
        self._check_inputs(given, start_stack, stop_stack)
        if start_stack == "decoder":
            return self.decode(given["resid"], given["audio"], start_at=start, stop_at=stop)
        encoded = given["audio"]
        if encoded is None:
            source = given["mel"] if start is None else given["resid"]
            if stop_stack == "encoder":
                return self.encode(source, start_at=start, stop_at=stop)
            encoded = self.encode(source, start_at=start)
        return self.decode(given["tokens"], encoded, stop_at=stop)

    def encode(
        self, mel: Mel | Resid, start_at: int | None = None, stop_at: int | None = None
    ) -> Audio:
        """The encoder's output `[batch audio d_enc]`, behind its final norm.

        With `start_at`, `mel` is the residual stream `[batch audio d_enc]` that enters that layer.
        With `stop_at`, returns the stream that would enter that layer.
        """
        start, stop = self._span("encoder", start_at, stop_at)
        if start_at is None:
            resid = self._front_end(self._checked_mel(mel))
        else:
            resid = self._entering("encoder", start, mel)
        for block in self.encoder[start:stop]:
            resid = block(resid)
        if stop_at is not None:
            return resid
        out: Audio = self.hook_encoder_out(self.encoder_final_ln(resid))
        return out

    def decode(
        self,
        tokens: Tokens | Resid,
        audio: Audio,
        start_at: int | None = None,
        stop_at: int | None = None,
        past: KVCache | None = None,
    ) -> Logits | Resid:
        """Logits `[batch pos d_vocab]` for tokens, given an encoder output.

        With `start_at`, `tokens` is the residual stream `[batch pos d_model]` that enters that
        layer. With `stop_at`, returns the stream that would enter that layer. With `past`, only the
        tokens that are new since the last call are given.
        """
        start, stop = self._span("decoder", start_at, stop_at)
        offset = past.length if past else 0
        with self.clock.at(offset):
            if start_at is None:
                resid = self._token_stream(self._checked_tokens(tokens, offset), offset)
            else:
                resid = self._entering("decoder", start, tokens)
            audio = self._checked_audio(audio, resid.shape[0])
            if past:
                past.check(len(self.decoder), *resid.shape[:2])
            for i in range(start, stop):
                resid = self.decoder[i](resid, audio, past.layers[i] if past else None)
            return resid if stop_at is not None else self.unembed(self.decoder_final_ln(resid))

    def _front_end(self, mel: Mel) -> Resid:
        mel = self.hook_mel((mel.clone() if self.hook_mel.active else mel).mT).mT
        embed = self.hook_embed(self.conv2(self.conv1(mel)).mT)
        position = self.encoder_pos_embed(embed.shape[1])
        return embed + _as_activation(position, self.hook_pos_embed, embed)

    def _token_stream(self, tokens: Tokens, offset: int) -> Resid:
        embed = self.hook_decoder_embed(self.embed(tokens))
        position = self.decoder_pos_embed(tokens.shape[1], offset)
        return embed + _as_activation(position, self.hook_decoder_pos_embed, embed)

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

    # --- What goes in -----------------------------------------------------------------------------

    def _place(self, place: str | None, argument: str) -> tuple[str | None, int | None]:
        if place is None:
            return None, None
        match = re.fullmatch(r"(encoder|decoder)\.(\d+)", place)
        if match is None:
            raise InputError(
                f"{argument} is a stack and a layer, like 'encoder.2' or 'decoder.0'; got {place!r}"
            )
        return match[1], int(match[2])

    def _span(self, stack: str, start: int | None, stop: int | None) -> tuple[int, int]:
        n_layers = self.config.stack(stack).n_layers
        first, last = start or 0, n_layers if stop is None else stop
        if not 0 <= first <= last <= n_layers:
            raise InputError(
                f"the {stack} has layers 0 to {n_layers - 1}, and {n_layers} stands for its end; "
                f"cannot run from {first} to {last}"
            )
        return first, last

    @staticmethod
    def _check_inputs(given: dict[str, Any], start: str | None, stop: str | None) -> None:
        """Exactly the inputs that a run between these places takes."""
        audio = given["audio"] is not None
        if (start, stop) == ("decoder", "encoder") or (audio and stop == "encoder"):
            raise InputError("the encoder comes before the decoder: this run would stop first")
        needed = {"resid"} if start else {"audio"} if audio else {"mel"}
        if start == "decoder":
            needed.add("audio")
        elif stop != "encoder":
            needed.add("tokens")
        got = {name for name, value in given.items() if value is not None}
        if got != needed:
            raise InputError(
                f"this run takes {' and '.join(sorted(needed))}; "
                f"got {' and '.join(sorted(got)) or 'nothing'}"
            )

    def _checked_mel(self, mel: Mel) -> Mel:
        n_mels, n_frames = self.config.front_end.n_mels, self.config.n_frames
        if mel.ndim != 3 or mel.shape[1:] != (n_mels, n_frames):
            raise InputError(
                f"this model takes log-mel frames of shape [batch {n_mels} {n_frames}] "
                f"(batch, mel bins, frames); got {list(mel.shape)}. "
                "model.to_mel makes them from any recording"
            )
        if not mel.is_floating_point():
            raise InputError(f"log-mel frames are floats; got {mel.dtype}")
        return mel.to(self.device, self.dtype)

    def _checked_tokens(
        self, tokens: Int[Tensor, "batch pos"], offset: int
    ) -> Int[Tensor, "batch pos"]:
        d_vocab, n_ctx = self.config.d_vocab, self.config.decoder.n_ctx
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] == 0:
            raise InputError(
                "tokens are integers of shape [batch pos], at least one of them; got "
                f"{tokens.dtype} of shape {list(tokens.shape)}"
            )
        if offset + tokens.shape[1] > n_ctx:
            raise InputError(
                f"the decoder has {n_ctx} positions; got {offset + tokens.shape[1]} tokens: "
                "give a shorter text"
            )
        low, high = torch.aminmax(tokens)
        if low < 0 or high >= d_vocab:
            wrong = int(low if low < 0 else high)
            raise InputError(f"tokens are 0 to {d_vocab - 1}; got {wrong}")
        return tokens.to(self.device)

    def _checked_audio(self, audio: Audio, batch: int) -> Audio:
        expected = (batch, self.config.encoder.n_ctx, self.config.encoder.d_model)
        if tuple(audio.shape) != expected:
            raise InputError(
                f"for {batch} rows of tokens the encoder output must be {list(expected)} "
                f"(batch, audio, d_enc); got {list(audio.shape)}"
            )
        return audio.to(self.device, self.dtype)

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
    ) -> int:
        """Bytes that `run_with_cache` would keep for `batch` clips of `n_pos` tokens each.

        An upper bound: a stream that leaves one layer and enters the next is kept once, but
        counted twice here.
        """
        specs = [self.hook_table[name] for name in select(names_filter, self.hook_table)]
        values = sum(math.prod(spec.shape(self.config, batch, n_pos)) for spec in specs)
        return values * (dtype or self.dtype).itemsize


def _as_activation(
    position: Float[Tensor, "pos d_model"], hook: HookPoint, embed: Resid
) -> Float[Tensor, "... pos d_model"]:
    """Positions are weights: a hook function gets a copy of them for each clip to edit."""
    return hook(position.expand_as(embed).clone()) if hook.active else position
