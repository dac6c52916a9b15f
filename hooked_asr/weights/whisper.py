"""Whisper's checkpoints, as OpenAI and everyone since published them on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import WhisperConfig, WhisperForConditionalGeneration

from hooked_asr.config import ConfigError, FrontEndConfig, ModelConfig, StackConfig
from hooked_asr.weights.source import Source, refuse_unknown

# The encoder, which Qwen2-Audio has too.
ENCODER_MODULES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "encoder_pos_embed": "embed_positions",
    "encoder.{i}.ln1": "layers.{i}.self_attn_layer_norm",
    "encoder.{i}.attn.q_proj": "layers.{i}.self_attn.q_proj",
    "encoder.{i}.attn.k_proj": "layers.{i}.self_attn.k_proj",
    "encoder.{i}.attn.v_proj": "layers.{i}.self_attn.v_proj",
    "encoder.{i}.attn.o_proj": "layers.{i}.self_attn.out_proj",
    "encoder.{i}.ln2": "layers.{i}.final_layer_norm",
    "encoder.{i}.mlp.fc_in": "layers.{i}.fc1",
    "encoder.{i}.mlp.fc_out": "layers.{i}.fc2",
    "encoder_final_ln": "layer_norm",
}
_MODULES = {
    **{ours: f"encoder.{theirs}" for ours, theirs in ENCODER_MODULES.items()},
    "embed": "decoder.embed_tokens",
    "decoder_pos_embed": "decoder.embed_positions",
    "decoder.{i}.ln1": "decoder.layers.{i}.self_attn_layer_norm",
    "decoder.{i}.attn.q_proj": "decoder.layers.{i}.self_attn.q_proj",
    "decoder.{i}.attn.k_proj": "decoder.layers.{i}.self_attn.k_proj",
    "decoder.{i}.attn.v_proj": "decoder.layers.{i}.self_attn.v_proj",
    "decoder.{i}.attn.o_proj": "decoder.layers.{i}.self_attn.out_proj",
    "decoder.{i}.ln2": "decoder.layers.{i}.encoder_attn_layer_norm",
    "decoder.{i}.cross_attn.q_proj": "decoder.layers.{i}.encoder_attn.q_proj",
    "decoder.{i}.cross_attn.k_proj": "decoder.layers.{i}.encoder_attn.k_proj",
    "decoder.{i}.cross_attn.v_proj": "decoder.layers.{i}.encoder_attn.v_proj",
    "decoder.{i}.cross_attn.o_proj": "decoder.layers.{i}.encoder_attn.out_proj",
    "decoder.{i}.ln3": "decoder.layers.{i}.final_layer_norm",
    "decoder.{i}.mlp.fc_in": "decoder.layers.{i}.fc1",
    "decoder.{i}.mlp.fc_out": "decoder.layers.{i}.fc2",
    "decoder_final_ln": "decoder.layer_norm",
    "unembed": "proj_out",
}

# Whisper's own among the fields that current transformers has dropped (see source.HISTORICAL).
_HISTORICAL = {
    "num_hidden_layers",
    "alignment_heads",
    "forced_decoder_ids",
    "is_multilingual",
    "lang_to_id",
    "no_timestamps_token_id",
    "return_timestamps",
    "task_to_id",
}

# A model that comes from no checkpoint has no tokens either; Whisper's own are WhisperConfig's
# defaults, and lie outside a smaller vocabulary.
_NO_TOKENS = {
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "begin_suppress_tokens": None,
}
_NORM_EPS = 1e-5


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """Translate a Whisper `config.json`.

    Raises `ConfigError` for a field that this translation does not know: it might change the model.
    """
    refuse_unknown("Whisper config", fields, WhisperConfig(), _HISTORICAL)
    field = WhisperConfig().to_dict() | dict(fields)
    return ModelConfig(
        front_end=FrontEndConfig(n_mels=field["num_mel_bins"]),
        encoder=_stack(field, "encoder", n_ctx=field["max_source_positions"]),
        decoder=_stack(field, "decoder", n_ctx=field["max_target_positions"]),
        d_vocab=field["vocab_size"],
        tied_embeddings=field["tie_word_embeddings"],
    )


def _stack(field: Mapping[str, Any], name: str, n_ctx: int) -> StackConfig:
    return StackConfig(
        n_layers=field[f"{name}_layers"],
        n_heads=field[f"{name}_attention_heads"],
        d_model=field["d_model"],
        d_mlp=field[f"{name}_ffn_dim"],
        n_ctx=n_ctx,
        activation=field["activation_function"],
    )


def config_to_hf(config: ModelConfig, other_fields: Mapping[str, Any]) -> WhisperConfig:
    """Translate back; `other_fields` are those that say nothing of the architecture.

    Raises `ConfigError` where Whisper's config cannot say what this one does.
    """
    encoder, decoder = config.encoder, config.decoder
    if encoder.d_model != decoder.d_model or encoder.activation != decoder.activation:
        raise ConfigError("a Whisper config has one width and one activation for both stacks")
    if (encoder.norm_eps, decoder.norm_eps) != (_NORM_EPS, _NORM_EPS):
        raise ConfigError(
            f"Whisper's norms all have an eps of {_NORM_EPS}; no config field says it"
        )
    architecture = {
        "vocab_size": config.d_vocab,
        "num_mel_bins": config.front_end.n_mels,
        "d_model": decoder.d_model,
        "activation_function": decoder.activation,
        "max_source_positions": encoder.n_ctx,
        "max_target_positions": decoder.n_ctx,
        "tie_word_embeddings": config.tied_embeddings,
    }
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        architecture[f"{name}_layers"] = stack.n_layers
        architecture[f"{name}_attention_heads"] = stack.n_heads
        architecture[f"{name}_ffn_dim"] = stack.d_mlp
    return WhisperConfig(**{**(other_fields or _NO_TOKENS), **architecture})


WHISPER = Source(
    model_type="whisper",
    modules=_MODULES,
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    hf_model=WhisperForConditionalGeneration,
    hf_inputs={"mel": "input_features", "tokens": "decoder_input_ids"},
)
