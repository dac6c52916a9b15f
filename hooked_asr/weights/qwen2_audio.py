"""Qwen2-Audio's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from hooked_asr.config import (
    ConfigError,
    FrontEndConfig,
    ModelConfig,
    PrefixConfig,
    StackConfig,
)
from hooked_asr.weights.source import Source, refuse_unknown, without_model
from hooked_asr.weights.whisper import ENCODER_MODULES

_MODULES = {
    **{ours: f"audio_tower.{theirs}" for ours, theirs in ENCODER_MODULES.items()},
    "projector": "multi_modal_projector.linear",
    "embed": "language_model.embed_tokens",
    "decoder.{i}.ln1": "language_model.layers.{i}.input_layernorm",
    "decoder.{i}.attn.q_proj": "language_model.layers.{i}.self_attn.q_proj",
    "decoder.{i}.attn.k_proj": "language_model.layers.{i}.self_attn.k_proj",
    "decoder.{i}.attn.v_proj": "language_model.layers.{i}.self_attn.v_proj",
    "decoder.{i}.attn.o_proj": "language_model.layers.{i}.self_attn.o_proj",
    "decoder.{i}.ln2": "language_model.layers.{i}.post_attention_layernorm",
    "decoder.{i}.mlp.fc_gate": "language_model.layers.{i}.mlp.gate_proj",
    "decoder.{i}.mlp.fc_in": "language_model.layers.{i}.mlp.up_proj",
    "decoder.{i}.mlp.fc_out": "language_model.layers.{i}.mlp.down_proj",
    "decoder_final_ln": "language_model.norm",
    "unembed": "lm_head",
}

# Fields of the published configs that current transformers has dropped, and that change nothing
# there either.
_HISTORICAL = {"ignore_index", "vocab_size", "audio_token_id"}
_AUDIO_HISTORICAL = {"init_std", "num_hidden_layers"}
_TEXT_HISTORICAL = {"use_mrope", "rope_theta", "rope_scaling", "head_dim"}
_AUDIO_NORM_EPS = 1e-5  # PyTorch's own, which no field says
_POOL = 2


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """Translate a Qwen2-Audio `config.json`.

    Raises `ConfigError` for a field that this translation does not know, and for what the library
    does not have: sliding windows, stretched rotary positions, heads of their own width.
    """
    refuse_unknown("Qwen2-Audio config", fields, Qwen2AudioConfig(), _HISTORICAL)
    for part, kind, historical in (
        ("audio_config", Qwen2AudioEncoderConfig, _AUDIO_HISTORICAL),
        ("text_config", Qwen2Config, _TEXT_HISTORICAL),
    ):
        refuse_unknown(part, fields.get(part) or {}, kind(), historical)
    theirs = Qwen2AudioConfig(**{k: v for k, v in fields.items() if k != "model_type"})
    audio: Any = theirs.audio_config
    text: Any = theirs.text_config
    _refuse_unbuilt(text)
    return ModelConfig(
        front_end=FrontEndConfig(n_mels=audio.num_mel_bins),
        encoder=StackConfig(
            n_layers=audio.encoder_layers,
            n_heads=audio.encoder_attention_heads,
            d_model=audio.d_model,
            d_mlp=audio.encoder_ffn_dim,
            n_ctx=audio.max_source_positions,
            activation=audio.activation_function,
        ),
        decoder=StackConfig(
            n_layers=text.num_hidden_layers,
            n_heads=text.num_attention_heads,
            d_model=text.hidden_size,
            d_mlp=text.intermediate_size,
            n_ctx=text.max_position_embeddings,
            activation=text.hidden_act,
            norm_eps=text.rms_norm_eps,
            group_size=_group_size(text),
            rotary_base=float(text.rope_parameters["rope_theta"]),
            gated_mlp=True,
            rms_norm=True,
        ),
        d_vocab=text.vocab_size,
        tied_embeddings=text.tie_word_embeddings,
        prefix=PrefixConfig(theirs.audio_token_index, _POOL),
    )


def _group_size(text: Any) -> int:
    size, rest = divmod(text.num_attention_heads, text.num_key_value_heads)
    if rest:
        raise ConfigError(
            f"{text.num_attention_heads} attention heads cannot share {text.num_key_value_heads} "
            "heads of keys and values evenly"
        )
    return int(size)


def _refuse_unbuilt(text: Any) -> None:
    kind = text.rope_parameters.get("rope_type", "default")
    if kind != "default":
        raise ConfigError(f"rotary positions of type {kind!r} are not built; only 'default' ones")
    if set(text.layer_types) != {"full_attention"}:
        raise ConfigError("attention in sliding windows is not built: set use_sliding_window false")
    width = text.hidden_size // text.num_attention_heads
    if getattr(text, "head_dim", None) not in (None, width):
        raise ConfigError(
            f"heads {text.head_dim} wide do not share out a stream of {text.hidden_size}; "
            f"{text.num_attention_heads} heads are {width} wide here"
        )


def config_to_hf(config: ModelConfig, other_fields: Mapping[str, Any]) -> Qwen2AudioConfig:
    """Translate back; `other_fields` are those that say nothing of the architecture.

    Raises `ConfigError` where Qwen2-Audio's config cannot say what this one does.
    """
    encoder, decoder, prefix = config.encoder, config.decoder, config.prefix
    if prefix is None or prefix.pool != _POOL or decoder.rotary_base is None:
        raise ConfigError("Qwen2-Audio reads audio as a prefix pooled by 2, at rotary positions")
    if not (decoder.gated_mlp and decoder.rms_norm) or encoder.gated_mlp or encoder.rms_norm:
        raise ConfigError("Qwen2-Audio has RMS norms and gated MLPs in its decoder, and only there")
    if encoder.norm_eps != _AUDIO_NORM_EPS or encoder.group_size != 1:
        raise ConfigError(
            f"the encoder's norms have an eps of {_AUDIO_NORM_EPS} and its heads their own keys; "
            "no config field says it"
        )
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": config.front_end.n_mels,
        "encoder_layers": encoder.n_layers,
        "encoder_attention_heads": encoder.n_heads,
        "encoder_ffn_dim": encoder.d_mlp,
        "d_model": encoder.d_model,
        "max_source_positions": encoder.n_ctx,
        "activation_function": encoder.activation,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": config.d_vocab,
        "hidden_size": decoder.d_model,
        "intermediate_size": decoder.d_mlp,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": decoder.n_heads,
        "num_key_value_heads": decoder.n_kv_heads,
        "max_position_embeddings": decoder.n_ctx,
        "hidden_act": decoder.activation,
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rotary_base},
        "layer_types": None,
        "tie_word_embeddings": config.tied_embeddings,
    }
    others = {k: v for k, v in other_fields.items() if k not in ("model_type", "audio_token_id")}
    return Qwen2AudioConfig(
        **others
        | {
            "audio_config": {**(others.get("audio_config") or {}), **audio},
            "text_config": {**(others.get("text_config") or {}), **text},
            "audio_token_index": prefix.audio_token,
        }
    )


def plain_key(key: str) -> str:
    """One form for the keys of checkpoints from before and after the head left the text model.

    >>> plain_key("language_model.model.norm.weight"), plain_key("model.language_model.norm.weight")
    ('language_model.norm.weight', 'language_model.norm.weight')
    """
    key = re.sub(r"^language_model\.model\.", "language_model.", without_model(key))
    return re.sub(r"^language_model\.lm_head\.", "lm_head.", key)


QWEN2_AUDIO = Source(
    model_type="qwen2_audio",
    modules=_MODULES,
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    hf_model=Qwen2AudioForConditionalGeneration,
    hf_inputs={
        "mel": "input_features",
        "tokens": "input_ids",
        "mel_mask": "feature_attention_mask",
        "attention_mask": "attention_mask",
    },
    plain=plain_key,
)
