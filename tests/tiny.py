"""Tiny Whispers with random weights, the reference's and ours, over every layout we support."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hooked_asr import HookedEncoderDecoder, HookedWhisper

N_VOCAB = 64
END, START, NO_TIMESTAMPS = 40, 41, 49

_BASE = {
    "vocab_size": N_VOCAB,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_source_positions": 50,  # one second of sound
    "max_target_positions": 24,
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
}

# What each layout changes in the base's config.
LAYOUTS: dict[str, dict[str, Any]] = {
    "base": {},
    "128_mels": {"num_mel_bins": 128},
    "unequal_heads": {"encoder_attention_heads": 2, "decoder_attention_heads": 8},
    "unequal_mlps": {"encoder_ffn_dim": 40, "decoder_ffn_dim": 72},
    "distilled": {"encoder_layers": 4, "decoder_layers": 1},
    "deep_decoder": {"encoder_layers": 1, "decoder_layers": 3},
    "untied": {"tie_word_embeddings": False},
    "relu": {"activation_function": "relu"},
    "one_head": {"encoder_attention_heads": 1, "decoder_attention_heads": 1},
    "multilingual": {},
}

_ENGLISH_RULES = {
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "max_length": _BASE["max_target_positions"],
    "no_timestamps_token_id": NO_TIMESTAMPS,
    "is_multilingual": False,
    "suppress_tokens": [1, 7, 9, START, NO_TIMESTAMPS],
    "begin_suppress_tokens": [3, END],
}
_MULTILINGUAL_RULES = _ENGLISH_RULES | {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 42, "<|de|>": 43, "<|fr|>": 44, "<|zh|>": 45},
    "task_to_id": {"translate": 46, "transcribe": 47},
}


def hf_whisper(
    layout: str = "base", dtype: torch.dtype = torch.float32
) -> WhisperForConditionalGeneration:
    """The reference: sdpa attention, eval mode, no weight, bias or norm left at 0 or 1."""
    config = WhisperConfig(**{**_BASE, **LAYOUTS[layout]}, attn_implementation="sdpa")
    model = WhisperForConditionalGeneration(config).eval()
    rules = _MULTILINGUAL_RULES if layout == "multilingual" else _ENGLISH_RULES
    model.generation_config = GenerationConfig(**rules)
    _randomise(model)
    return model.to(dtype)


def hooked(layout: str = "base", dtype: torch.dtype = torch.float32) -> HookedWhisper:
    """The same model, hooked."""
    return HookedWhisper.from_hf(hf_whisper(layout, dtype))


def inputs(model: Any, batch: int = 2, n_pos: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-mel frames `[batch n_mels frame]` and tokens `[batch pos]`, for our model or theirs."""
    generator = torch.Generator().manual_seed(seed)
    conv1 = model.conv1 if isinstance(model, HookedEncoderDecoder) else model.model.encoder.conv1
    shape = (batch, conv1.in_channels, 2 * _BASE["max_source_positions"])
    mel = torch.randn(shape, generator=generator).to(model.dtype)
    return mel, torch.randint(0, END, (batch, n_pos), generator=generator)


@torch.no_grad()
def _randomise(model: WhisperForConditionalGeneration) -> None:
    """Draw every parameter so that leaving any of them out, or mixing two up, shows.

    The sizes make for attention far from uniform, and for transcripts that depend on the sound and
    say more than one word.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layer_norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise)
        elif "encoder.embed_positions" in name:  # sinusoids, but not quite
            parameter.add_(0.3 * noise)
        elif "embed_positions" in name:
            parameter.copy_(noise)
        elif "embed_tokens" in name or parameter.ndim == 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
