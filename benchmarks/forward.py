"""A forward with no hooks, and with an unfiltered cache, against Hugging Face's fused forward.

    python benchmarks/forward.py [--sizes tiny base] [--tokens 30] [--rounds 21]

Random weights in the shapes of the published models; both models share them. Their "cache" is the
nearest thing there is: `output_hidden_states=True`, one tensor for each layer where ours keeps 15
(encoder) or 23 (decoder).
"""

from __future__ import annotations

import argparse
import platform

import torch
import transformers
from side_by_side import compare
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hooked_asr import HookedWhisper

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}


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


@torch.inference_mode()
def measure(size: str, n_pos: int, rounds: int) -> None:
    ours, theirs = models(size)
    mel = torch.randn(1, 80, 3000)
    tokens = torch.randint(50_000, (1, n_pos))
    equal = torch.equal(ours(mel, tokens), theirs(mel, decoder_input_ids=tokens).logits)
    encoded = ours.encode(mel)
    rows = {
        "forward": (
            lambda: ours(mel, tokens),
            lambda: theirs(mel, decoder_input_ids=tokens),
        ),
        "decoder alone": (
            lambda: ours.decode(tokens, encoded),
            lambda: theirs(encoder_outputs=(encoded,), decoder_input_ids=tokens),
        ),
        "with cache": (
            lambda: ours.run_with_cache(mel, tokens),
            lambda: theirs(mel, decoder_input_ids=tokens, output_hidden_states=True),
        ),
    }
    for name, (run_ours, run_theirs) in rows.items():
        a, b, ratio = compare(run_ours, run_theirs, rounds)
        print(
            f"{size:6} {name:14} ours {1e3 * a:8.1f} ms   theirs {1e3 * b:8.1f} ms   "
            f"ratio {ratio:.3f}   logits bit-equal: {equal}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=SIZES)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32, {args.tokens} tokens; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for size in args.sizes:
        measure(size, args.tokens, args.rounds)
