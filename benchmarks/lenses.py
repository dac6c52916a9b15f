"""Lenses, against the forward that they need and against the same by hand on Hugging Face's model.

    python benchmarks/lenses.py [--sizes tiny base] [--tokens 30 100] [--rounds 11]

Logit lens: random weights in the shapes of the published models, one window of sound. Each
layer's top 5, entropy, divergence from the last layer, rank and probability of the final token and
of the one that follows. Its time is given over that of

- the forward alone;
- the forward and the unembeddings of the other layers, without which there is no such lens;
- `output_hidden_states=True`, then the same numbers by torch's own functions, layer by layer, as
  one would write them.

Encoder lens: whisper-nano on its English clip, every layer; over one `generate` for each layer from
hidden states that are computed once. Numbers, and transcripts, are compared too.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from forward import SIZES, models
from side_by_side import compare
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from hooked_asr import HookedWhisper
from hooked_asr.lenses import encoder_lens, logit_lens
from hooked_asr.nano.bundle import clip

TOP = 5


@dataclass(frozen=True)
class Pair:
    """A lens, and what its time is divided by."""

    name: str
    lens: Callable[[], object]
    other: Callable[[], object]


def by_hand(hf: WhisperForConditionalGeneration, mel: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """A logit lens as one would write it."""
    out = hf(mel, decoder_input_ids=tokens, output_hidden_states=True)
    norm = hf.model.decoder.layer_norm
    # Behind the last layer they are normed already.
    inner = [hf.proj_out(norm(state)) for state in out.decoder_hidden_states[1:-1]]
    final = out.logits.log_softmax(-1)
    asked = torch.stack([final.argmax(-1), tokens.roll(-1, 1)], -1)
    layers = []
    for logits in [*inner, out.logits]:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        own = log_probs.gather(-1, asked)
        layers.append(
            {
                "top_tokens": log_probs.topk(TOP).indices,
                "entropy": -(probs * log_probs).sum(-1),
                "kl": (final.exp() * (final - log_probs)).sum(-1),
                "rank": (log_probs[..., None, :] > own[..., None]).sum(-1),
                "prob": own.exp(),
            }
        )
    return {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}


def check(lens: Any, theirs: dict[str, Tensor]) -> None:
    """Ends the script where the lenses differ."""
    for name in ("entropy", "kl"):
        torch.testing.assert_close(getattr(lens, name), theirs[name], rtol=1e-4, atol=1e-4)
    rank, prob = theirs["rank"][:, :, :-1].float(), theirs["prob"][:, :, :-1]
    for i, part in enumerate((lens.final_rank[..., None], lens.ahead_rank)):
        torch.testing.assert_close(part[:, :, :-1, 0], rank[..., i], rtol=0, atol=1)
    for i, part in enumerate((lens.final_prob[..., None], lens.ahead_prob)):
        torch.testing.assert_close(part[:, :, :-1, 0], prob[..., i])


def logit_pairs(size: str, n_pos: int) -> Iterator[Pair]:
    ours, theirs = models(size)
    mel, tokens = torch.randn(1, 80, 3000), torch.randint(50_000, (1, n_pos))

    def lens() -> Any:
        return logit_lens(ours, (mel, tokens), top_k=TOP, progress=False)

    def with_unembeddings() -> None:
        ours(mel, tokens)
        for _ in range(ours.config.decoder.n_layers - 1):
            ours.unembed(ours.decoder_final_ln(stream))

    stream = torch.randn(1, n_pos, ours.config.decoder.d_model)
    check(lens(), by_hand(theirs, mel, tokens))
    what = f"logit lens, {size}, {n_pos} tokens"
    yield Pair(f"{what} / forward", lens, lambda: ours(mel, tokens))
    yield Pair(f"{what} / forward and unembeddings", lens, with_unembeddings)
    yield Pair(f"{what} / by hand", lens, lambda: by_hand(theirs, mel, tokens))


def encoder_pair() -> Pair:
    ours = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    theirs = ours.to_hf().eval()
    heard = clip("english")
    mel = ours.to_mel(heard.path)

    def loop() -> list[str]:
        *streams, last = theirs.model.encoder(mel, output_hidden_states=True).hidden_states
        outputs = [*map(theirs.model.encoder.layer_norm, streams), last]
        asked = {"language": heard.language, "task": "transcribe"}
        said = [
            theirs.generate(encoder_outputs=BaseModelOutput(output), **asked) for output in outputs
        ]
        return [ours.to_string(row[0], special=False).strip() for row in said]

    def lens() -> list[str]:
        return [one.text for one in encoder_lens(ours, mel).clips[0].layers]

    if lens() != loop():
        raise SystemExit(f"transcripts differ: {lens()} and {loop()}")
    return Pair("encoder lens, nano, all layers / loop", lens, loop)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[30, 100])
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    pairs = (pair for size in args.sizes for n in args.tokens for pair in logit_pairs(size, n))
    for pair in [*pairs, encoder_pair()]:
        a, b, ratio = compare(pair.lens, pair.other, args.rounds)
        print(
            f"{pair.name:58} {1e3 * a:8.1f} ms   {1e3 * b:8.1f} ms   ratio {ratio:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
