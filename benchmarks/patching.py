"""A sweep over all cross-attention heads, against forward-pre-hooks on the Hugging Face model.

    python benchmarks/patching.py [--size tiny] [--tokens 30] [--rounds 5]

Theirs is what one writes without this library: keep `out_proj`'s input of a reference run, then one
whole forward for each head with that slice put in. Both give the same numbers; that is checked.
"""

from __future__ import annotations

import argparse

import torch
from forward import models
from side_by_side import compare
from transformers import WhisperForConditionalGeneration

from hooked_asr import patching


def by_hand(
    model: WhisperForConditionalGeneration,
    mel: torch.Tensor,
    noise: torch.Tensor,
    tokens: torch.Tensor,
    metric: patching.Metric,
) -> torch.Tensor:
    layers = [layer.encoder_attn for layer in model.model.decoder.layers]
    d_head, kept = layers[0].head_dim, {}
    handles = [
        attention.out_proj.register_forward_pre_hook(
            lambda module, inputs, i=i: kept.__setitem__(i, inputs[0])
        )
        for i, attention in enumerate(layers)
    ]
    model(noise, decoder_input_ids=tokens)
    for handle in handles:
        handle.remove()
    values = []
    for i, attention in enumerate(layers):
        for head in range(attention.num_heads):
            where = slice(head * d_head, (head + 1) * d_head)

            def patch(module, inputs, i=i, where=where):
                z = inputs[0].clone()
                z[..., where] = kept[i][..., where]
                return (z,)

            handle = attention.out_proj.register_forward_pre_hook(patch)
            values.append(metric(model(mel, decoder_input_ids=tokens).logits).mean())
            handle.remove()
    return torch.stack(values).reshape(len(layers), -1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=["tiny", "base", "small"])
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours, theirs = models(args.size)
    mel, noise = torch.randn(2, 1, 80, 3000)
    tokens = torch.randint(50_000, (1, args.tokens))
    metric = patching.logit_diff(1, 2)

    def sweep() -> torch.Tensor:
        return patching.sweep(
            ours,
            clean=(mel, tokens),
            reference=(noise, tokens),
            sites=patching.heads("decoder.cross_attn"),
            metric=metric,
            progress=False,
        ).values

    def loop() -> torch.Tensor:
        return by_hand(theirs, mel, noise, tokens, metric)

    difference = (sweep() - loop()).abs().max()
    a, b, ratio = compare(sweep, loop, args.rounds)
    print(
        f"{args.size}: {sweep().numel()} heads, {args.tokens} tokens: sweep {a:.2f} s, "
        f"by hand {b:.2f} s, {1 / ratio:.1f} times faster; largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
