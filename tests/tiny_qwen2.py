"""Tiny Qwen2-Audios with random weights, the reference's and ours, over every layout we support."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from hooked_asr import HookedQwen2Audio

N_VOCAB = 80
N_MELS = 8
N_FRAMES = 100  # one second of sound: 50 positions in the encoder, 25 of them pooled
# Ids below END are text.
END, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS = range(70, 76)

_AUDIO_CONFIG = {
    "model_type": "qwen2_audio_encoder",
    "num_mel_bins": N_MELS,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "max_source_positions": N_FRAMES // 2,
}
_TEXT_CONFIG = {
    "model_type": "qwen2",
    "vocab_size": N_VOCAB,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": END,
    "eos_token_id": IM_END,
}

# What each layout changes in the base's two configs.
LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "mha": {},
    "gqa": {"text": {"num_key_value_heads": 2}},
    "mqa": {"text": {"num_key_value_heads": 1}},
    "unequal_heads": {
        "audio": {"encoder_attention_heads": 2},
        "text": {"num_attention_heads": 8, "num_key_value_heads": 4},
    },
    "deep": {"audio": {"encoder_layers": 3}, "text": {"num_hidden_layers": 3}},
    "tied": {"text": {"tie_word_embeddings": True}},
    # Large enough, beside squares of about 1, that no bit of a result is left as it was.
    "norm_eps": {"text": {"rms_norm_eps": 1e-2, "rope_theta": 100.0}},
}

RULES = {
    "bos_token_id": END,
    "eos_token_id": [IM_END, END],
    "pad_token_id": END,
    "max_new_tokens": 12,
}
REPETITION_RULES = RULES | {"repetition_penalty": 1.3}

# Frames of each clip of each prompt, and the side of the padding where rows differ in length.
BATCHES: dict[str, dict[str, Any]] = {
    "one_clip": {"frames": [[61]]},
    "whole_window": {"frames": [[N_FRAMES]]},
    "left_padded": {"frames": [[N_FRAMES], [40], [61]], "side": "left"},
    "right_padded": {"frames": [[N_FRAMES], [40], [61]], "side": "right"},
    "equal_rows": {"frames": [[61], [61]]},
    "several_clips": {"frames": [[N_FRAMES, 23, 61]]},
    "shortest_clip": {"frames": [[3]]},
    "clips_side_by_side": {"frames": [[40, 61]], "between": 0},
    "text_only": {"frames": [[]]},
    "mixed_left": {"frames": [[], [40], [61, N_FRAMES]], "side": "left"},
    "mixed_right": {"frames": [[61, N_FRAMES], [], [40]], "side": "right"},
}


def config(layout: str = "mha") -> Qwen2AudioConfig:
    """The reference's config of a layout."""
    changes = LAYOUTS[layout]
    return Qwen2AudioConfig(
        audio_config=_AUDIO_CONFIG | changes.get("audio", {}),
        text_config=_TEXT_CONFIG | changes.get("text", {}),
        audio_token_index=AUDIO,
        attn_implementation="sdpa",
    )


def hf_qwen2_audio(
    layout: str = "mha", dtype: torch.dtype = torch.float32, **rules: Any
) -> Qwen2AudioForConditionalGeneration:
    """The reference: sdpa attention, eval mode, no weight, bias or norm left at 0 or 1."""
    model = randomised(Qwen2AudioForConditionalGeneration(config(layout)).eval())
    for part in (model.model.audio_tower, model.model.language_model):
        assert part.config._attn_implementation == "sdpa"
    model.generation_config = GenerationConfig(**RULES | rules)
    return cast(model, dtype)


def hooked(
    layout: str = "mha", dtype: torch.dtype = torch.float32, **rules: Any
) -> HookedQwen2Audio:
    """The same model, hooked."""
    return HookedQwen2Audio.from_hf(hf_qwen2_audio(layout, dtype, **rules))


def n_pooled(frames: int) -> int:
    """Decoder positions of a clip with so many real frames."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def inputs(
    frames: list[list[int]] | None = None,
    side: str = "left",
    n_text: int = 3,
    between: int = 2,
    n_said: int = 4,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Prompts for our model, each with a clip for each of its numbers of real frames.

    A prompt has `n_text` text tokens, its clips with `between` tokens after each but the last, and
    `n_said` tokens. What lies behind a clip's end is noise as loud as the clip.
    """
    frames = [[61]] if frames is None else frames
    generator = torch.Generator().manual_seed(seed)

    def text(n: int) -> list[int]:
        return torch.randint(END, (n,), generator=generator).tolist()

    rows = []
    for clips in frames:
        row = text(n_text)
        for i, length in enumerate(clips):
            row += (text(between) if i else []) + [AUDIO] * n_pooled(length)
        rows.append(row + text(n_said))
    batch = _padded(rows, side)
    lengths = torch.tensor([length for clips in frames for length in clips])
    if len(lengths):
        batch["mel"] = torch.randn(len(lengths), N_MELS, N_FRAMES, generator=generator)
        batch["mel_mask"] = (torch.arange(N_FRAMES) < lengths[:, None]).long()
    return batch


def _padded(rows: list[list[int]], side: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    tokens, mask = [], []
    for row in rows:
        padding, kept = [END] * (longest - len(row)), [1] * len(row)
        tokens.append(padding + row if side == "left" else row + padding)
        mask.append([0] * len(padding) + kept if side == "left" else kept + [0] * len(padding))
    return {"tokens": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}


_THEIR_NAMES = {
    "mel": "input_features",
    "mel_mask": "feature_attention_mask",
    "tokens": "input_ids",
    "attention_mask": "attention_mask",
}


def hf_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs under the reference's names."""
    return {_THEIR_NAMES[name]: value for name, value in batch.items()}


@torch.no_grad()
def randomised(model: Any) -> Any:
    """Draw every parameter so that leaving any of them out, or mixing two up, shows.

    The sizes make for attention far from uniform, and for replies that depend on the sound and say
    more than one word.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise)
        elif "embed_positions" in name:
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(3 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * noise)
        else:
            sizes = {"self_attn.q_proj": 2, "self_attn.o_proj": 3} if "language" in name else {}
            size = next((n for part, n in sizes.items() if part in name), 1)
            parameter.copy_(size * noise / parameter[0].numel() ** 0.5)
    if model.config.text_config.tie_word_embeddings:  # which this version of the reference ignores
        embedding = model.get_input_embeddings().weight
        embedding.mul_(0.1)  # as large as an unembedding
        model.lm_head.weight.copy_(embedding)
    return model


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The reference in another float type, as its `from_pretrained` would have loaded it.

    `model.to` would also round the rotations' frequencies, which are float32 there in any case.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
