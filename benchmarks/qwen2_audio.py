"""Qwen2-Audio for the other scripts: its parts in their published widths, but fewer layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from hooked_asr import HookedQwen2Audio

AUDIO_TOKEN = 31_999
# Layers of the encoder and the decoder; width, heads, heads of keys and width of the MLP in the
# decoder. The encoder's are always the published ones.
SIZES = {"medium": (4, 4, 1024, 16, 4, 2816), "large": (8, 16, 2048, 16, 4, 6144)}
SHARD = 400 * 2**20


def config(size: str) -> Qwen2AudioConfig:
    n_encoder, n_decoder, d_model, n_heads, n_kv_heads, d_mlp = SIZES[size]
    return Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "encoder_layers": n_encoder},
        text_config={
            "model_type": "qwen2",
            "vocab_size": 32_000,
            "hidden_size": d_model,
            "intermediate_size": d_mlp,
            "num_hidden_layers": n_decoder,
            "num_attention_heads": n_heads,
            "num_key_value_heads": n_kv_heads,
            "max_position_embeddings": 8192,
        },
        audio_token_index=AUDIO_TOKEN,
        attn_implementation="sdpa",
    )


def models(size: str) -> tuple[HookedQwen2Audio, Qwen2AudioForConditionalGeneration]:
    """Both models over the same random weights; decoding never ends before its limit."""
    torch.manual_seed(0)
    theirs = Qwen2AudioForConditionalGeneration(config(size)).eval()
    theirs.generation_config = GenerationConfig(pad_token_id=0)
    return HookedQwen2Audio.from_hf(theirs), theirs


def inputs(n_text: int) -> dict[str, torch.Tensor]:
    """A prompt of a clip of 30 s and so many tokens of text, half of them in front of it."""
    text = torch.randint(AUDIO_TOKEN, (1, n_text))
    audio = torch.full((1, 750), AUDIO_TOKEN)
    tokens = torch.cat([text[:, : n_text // 2], audio, text[:, n_text // 2 :]], dim=1)
    return {
        "mel": torch.randn(1, 128, 3000),
        "mel_mask": torch.ones(1, 3000, dtype=torch.long),
        "tokens": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


def write_checkpoint(folder: str, size: str, dtype: torch.dtype) -> None:
    """A checkpoint with random weights, one shard in memory at a time."""
    fields = config(size)
    fields.architectures = ["Qwen2AudioForConditionalGeneration"]
    fields.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: weight.shape
            for name, weight in Qwen2AudioForConditionalGeneration(fields).state_dict().items()
        }
    weight_map = {}
    for i, names in enumerate(_shards(shapes, dtype.itemsize)):
        file = f"model-{i:05}.safetensors"
        weights = {name: (0.02 * torch.randn(shapes[name])).to(dtype) for name in names}
        save_file(weights, Path(folder) / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(shapes: dict[str, torch.Size], itemsize: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + shape.numel() * itemsize > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += shape.numel() * itemsize
    yield names
