"""A tiny Qwen2-Audio as a checkpoint folder: weights, a tokenizer of bytes, windows of a second."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_qwen2 import N_MELS, RULES, cast, config, randomised
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    GenerationConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)

_BYTES = sorted(ByteLevel.alphabet())
# Ids 0 to 255 are the bytes, then come a merge and the special tokens.
_TEXT_TOKENS = [*_BYTES, "Ġa"]
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
]
END, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS = (
    len(_TEXT_TOKENS) + i for i in range(len(SPECIAL_TOKENS))
)
# As in the published checkpoints, the model has room for more tokens than the tokenizer has.
N_VOCAB = AUDIO_EOS + 8


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Reads and writes any text, byte by byte; " a" is one token."""
    end, *others = SPECIAL_TOKENS
    ids = {token: i for i, token in enumerate(_TEXT_TOKENS)}
    tokenizer = Qwen2Tokenizer(vocab=ids, merges=[("Ġ", "a")], unk_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    return tokenizer


def feature_extractor() -> WhisperFeatureExtractor:
    """Windows of one second, of as many mel bins as the tiny models take."""
    return WhisperFeatureExtractor(feature_size=N_MELS, chunk_length=1)


def hf_model(
    layout: str = "gqa", dtype: torch.dtype = torch.float32
) -> Qwen2AudioForConditionalGeneration:
    """The reference's model of the checkpoint, with the vocabulary of its tokenizer."""
    fields = config(layout)
    fields.audio_token_index = AUDIO
    ids = {"bos_token_id": END, "eos_token_id": IM_END}
    for name, value in (ids | {"vocab_size": N_VOCAB}).items():
        setattr(fields.text_config, name, value)
    model = cast(randomised(Qwen2AudioForConditionalGeneration(fields).eval()), dtype)
    # The published rules sample by default, and do not like repetition.
    rules: dict[str, Any] = RULES | ids | {"eos_token_id": [IM_END, END], "pad_token_id": END}
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.5}
    model.generation_config = GenerationConfig(**rules, **sampling, repetition_penalty=1.1)
    return model


def save_checkpoint(
    folder: Path,
    layout: str = "gqa",
    keys: str = "new",
    shards: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the folder that `from_pretrained` reads.

    `keys`: tensors named as in the reference's modules of today ("new"), or as in the published
    checkpoints ("old").
    """
    model = hf_model(layout, dtype)
    model.save_pretrained(folder)  # for its configs; the weights are written anew
    for path in folder.glob("*.safetensors"):
        path.unlink()
    name = _published_name if keys == "old" else str
    weights = {name(key): tensor for key, tensor in model.state_dict().items()}
    _save_weights(folder, weights, shards=3 if shards else 1)
    tiny_tokenizer().save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return folder


def _published_name(key: str) -> str:
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    key = key.removeprefix("model.")
    return key.replace("language_model.", "language_model.model.", 1)


def _save_weights(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata=metadata)
        return
    weight_map = {
        key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, key in enumerate(weights)
    }
    for part in set(weight_map.values()):
        tensors = {key: weights[key] for key in weights if weight_map[key] == part}
        save_file(tensors, folder / part, metadata=metadata)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
