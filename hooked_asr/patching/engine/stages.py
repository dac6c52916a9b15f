"""A forward cut into stages: the places between which rows may join it."""

from __future__ import annotations

from hooked_asr.config import ModelConfig

_ENCODER_TAIL = ("hook_encoder_pool", "encoder_final_ln", "hook_encoder_out")
_EMBED = ("projector", "hook_decoder_embed", "hook_decoder_pos_embed")
_DECODER_TAIL = ("decoder_final_ln", "unembed")


class Stages:
    """Front end, encoder layers, encoder tail, embedding, decoder layers, tail: numbered from 0."""

    def __init__(self, config: ModelConfig) -> None:
        n_encoder, n_decoder = config.encoder.n_layers, config.decoder.n_layers
        self.front_end = 0
        self.encoder = range(1, 1 + n_encoder)
        self.encoder_tail = self.encoder.stop
        self.embed = self.encoder_tail + 1
        self.decoder = range(self.embed + 1, self.embed + 1 + n_decoder)
        self.tail = self.decoder.stop

    def of(self, name: str) -> int:
        """The stage in which a hook fires."""
        part, _, rest = name.partition(".")
        if part in ("encoder", "decoder"):
            layers: range = getattr(self, part)
            return layers[int(rest.partition(".")[0])]
        for parts, stage in (
            (_ENCODER_TAIL, self.encoder_tail),
            (_EMBED, self.embed),
            (_DECODER_TAIL, self.tail),
        ):
            if part in parts:
                return stage
        return self.front_end

    def in_encoder(self, stage: int) -> bool:
        """Whether a stage comes before the decoder's."""
        return stage <= self.encoder_tail
