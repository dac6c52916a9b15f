"""A forward with no hooks, and with an unfiltered cache, against Hugging Face's fused forward.

    python benchmarks/forward.py [--sizes tiny base] [--tokens 30] [--rounds 21]
    python benchmarks/forward.py --family qwen2-audio [--rounds 21]

Random weights in the shapes of the published models; both models share them. Their "cache" is the
nearest thing there is: `output_hidden_states=True`, one tensor for each layer where ours keeps 15
(encoder) and 23 (Whisper's decoder) or 18 (Qwen2-Audio's). Qwen2-Audio also decodes greedily.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import qwen2_audio
import torch
import transformers
from side_by_side import compare
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hooked_asr import HookedWhisper

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
NEW_TOKENS = 32


@dataclass(frozen=True)
class Pair:
    """The same done by both models, and whether their logits (or tokens) are bit-equal."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    equal: bool


def models(size: str) -> tuple[HookedWhisper, WhisperForConditionalGeneration]:
    d_model, layers, heads = SIZES[size]
    config = WhisperConfig(
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_ffn_dim=4 * d_model,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs = WhisperForConditionalGeneration(config).eval()
    return HookedWhisper.from_hf(theirs), theirs


def whisper_pairs(size: str, n_pos: int) -> Iterator[Pair]:
    ours, theirs = models(size)
    mel = torch.randn(1, 80, 3000)
    tokens = torch.randint(50_000, (1, n_pos))
    equal = torch.equal(ours(mel, tokens), theirs(mel, decoder_input_ids=tokens).logits)
    encoded = ours.encode(mel)
    yield Pair(
        "forward",
        lambda: ours(mel, tokens),
        lambda: theirs(mel, decoder_input_ids=tokens),
        equal,
    )
    yield Pair(
        "decoder alone",
        lambda: ours.decode(tokens, encoded),
        lambda: theirs(encoder_outputs=(encoded,), decoder_input_ids=tokens),
        equal,
    )
    yield Pair(
        "with cache",
        lambda: ours.run_with_cache(mel, tokens),
        lambda: theirs(mel, decoder_input_ids=tokens, output_hidden_states=True),
        equal,
    )


def qwen2_audio_pairs(size: str, n_text: int) -> Iterator[Pair]:
    ours, theirs = qwen2_audio.models(size)
    inputs = qwen2_audio.inputs(n_text)
    named = {ours.source.hf_inputs[name]: value for name, value in inputs.items()}
    logits = theirs(**named, use_cache=False).logits
    yield Pair(
        "forward",
        lambda: ours(**inputs),
        lambda: theirs(**named, use_cache=False),
        torch.equal(ours(**inputs), logits),
    )
    yield Pair(
        "with cache",
        lambda: ours.run_with_cache(**inputs),
        lambda: theirs(**named, use_cache=False, output_hidden_states=True),
        torch.equal(ours.run_with_cache(**inputs)[0], logits),
    )

    def say() -> list[int]:
        return ours.generate(**inputs, max_new_tokens=NEW_TOKENS)[0].tokens

    def they_say() -> torch.Tensor:
        return theirs.generate(**named, do_sample=False, max_new_tokens=NEW_TOKENS)

    said = they_say()[0, inputs["tokens"].shape[1] :].tolist()
    yield Pair(f"{NEW_TOKENS} tokens", say, they_say, said == say())


FAMILIES = {
    "whisper": (whisper_pairs, ["tiny", "base"]),
    "qwen2-audio": (qwen2_audio_pairs, ["medium"]),
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="whisper", choices=FAMILIES)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, *qwen2_audio.SIZES])
    parser.add_argument("--tokens", type=int, default=30, help="Of text, beside any of audio.")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    pairs, usual = FAMILIES[args.family]
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32, {args.tokens} tokens; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for size in args.sizes or usual:
        for pair in pairs(size, args.tokens):
            a, b, ratio = compare(pair.ours, pair.theirs, args.rounds)
            print(
                f"{size:6} {pair.name:14} ours {1e3 * a:8.1f} ms   theirs {1e3 * b:8.1f} ms   "
                f"ratio {ratio:.3f}   bit-equal: {pair.equal}",
                flush=True,
            )


if __name__ == "__main__":
    main()
