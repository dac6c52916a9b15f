"""Decoding: tokens a second, and every decoder head ablated, against Hugging Face's `generate`.

    python benchmarks/decoding.py [--tokens 100] [--rounds 9] [--model FOLDER] [--audio FILE]

Random weights in whisper-tiny's shapes, and whisper-nano. Neither may say its end token, so both
sides take the same number of steps; the encoder's output is given to both. Without hooks, then with
a function behind every decoder layer, which does nothing; and whisper-nano's steps without being
replayed. Heads are ablated by `generate_rows`, and by one `generate` for each with a
forward-pre-hook on `out_proj`, the encoder included; with `--model` also those of a trained
checkpoint on a recording, which ends where it will. Tokens are compared too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from forward import models
from side_by_side import compare
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from hooked_asr import HookedWhisper
from hooked_asr.generation import greedy
from hooked_asr.interventions import zero
from hooked_asr.nano.bundle import clip

ATTENTIONS = {"attn": "self_attn", "cross_attn": "encoder_attn"}


N_SUPPRESSED = 88  # as in the published checkpoints


def endless(model: Any, times: bool = True) -> None:
    """Forbid the end token, as many as published checkpoints do, and time stamps where asked.

    Then as many tokens are said as are asked for; without time stamps, in one window.
    """
    rules, d_vocab = model.generation_config, model.config.vocab_size
    stamps = [] if times else range(rules.no_timestamps_token_id + 1, d_vocab)
    rules.suppress_tokens = [*range(0, N_SUPPRESSED * 11, 11), rules.eos_token_id, *stamps]


def tiny() -> tuple[HookedWhisper, WhisperForConditionalGeneration]:
    ours, theirs = models("tiny")
    rules = theirs.generation_config
    rules.update(decoder_start_token_id=50257, eos_token_id=50256, pad_token_id=50256)
    rules.no_timestamps_token_id = 50362
    ours.generation_config = rules
    return ours, theirs


def nano() -> tuple[HookedWhisper, WhisperForConditionalGeneration]:
    ours = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    return ours, ours.to_hf().eval()


def look(*_: Any, hook: Any = None) -> None:
    """What hooks come to when they do nothing."""


@contextmanager
def looked_at(ours: HookedWhisper, theirs: Any) -> Iterator[None]:
    """A function behind every decoder layer of both."""
    with ExitStack() as hooks:
        hooks.enter_context(ours.hooks([("decoder.*.hook_resid_post", look)]))
        for layer in theirs.model.decoder.layers:
            hooks.enter_context(layer.register_forward_hook(look))
        yield


def speed(
    name: str, ours: HookedWhisper, theirs: Any, n_tokens: int, rounds: int, hooked: bool
) -> None:
    """Greedy decoding of one clip, the encoder's output given."""
    endless(theirs)
    ours.generation_config = theirs.generation_config
    mel = torch.randn(1, ours.config.front_end.n_mels, ours.config.n_frames)
    audio = ours.encode(mel)
    language = {"language": "en", "task": "transcribe"} if ours.config.d_vocab < 2000 else {}
    prompt = torch.tensor([ours.prompt(**language)])
    n_tokens = min(n_tokens, ours.config.decoder.n_ctx - prompt.shape[1])
    said: dict[str, list[int]] = {}

    def our_tokens() -> None:
        inputs = {"audio": audio, "tokens": prompt}
        said["ours"] = greedy(ours, inputs, prompt.shape[1] + n_tokens)[0]

    def their_tokens() -> None:
        out = theirs.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=audio),
            max_new_tokens=n_tokens,
            do_sample=False,
            force_unique_generate_call=True,
            **language,
        )
        said["theirs"] = out[0, -n_tokens:].tolist()

    with looked_at(ours, theirs) if hooked else nullcontext():
        a, b, ratio = compare(our_tokens, their_tokens, rounds)
    what = "a hook on each layer" if hooked else "no hooks"
    same = said["ours"] == said["theirs"]
    print(
        f"{name:8} {n_tokens} tokens, {what}: hooked_asr {n_tokens / a:.0f} tokens/s, transformers "
        f"{n_tokens / b:.0f} tokens/s, {1 / ratio:.2f} times as many; same tokens: {same}"
    )


def replays(name: str, ours: HookedWhisper, theirs: Any, n_tokens: int, rounds: int) -> None:
    """Replayed steps against the forward's own, which a hook of PyTorch's brings back."""
    endless(theirs)
    ours.generation_config = theirs.generation_config
    audio = ours.encode(torch.randn(1, ours.config.front_end.n_mels, ours.config.n_frames))
    prompt = torch.tensor([ours.prompt(language="en")])
    inputs, limit = {"audio": audio, "tokens": prompt}, prompt.shape[1] + n_tokens
    said: dict[str, list[list[int]]] = {}

    def replayed() -> None:
        said["replayed"] = greedy(ours, inputs, limit)

    def forward() -> None:
        with ours.decoder_final_ln.register_forward_hook(look):
            said["forward"] = greedy(ours, inputs, limit)

    a, b, ratio = compare(replayed, forward, rounds)
    print(
        f"{name:8} {n_tokens} tokens: a step takes {1e3 * a / n_tokens:.2f} ms replayed, "
        f"{1e3 * b / n_tokens:.2f} ms as the forward, {ratio:.2f} of it; "
        f"same tokens: {said['replayed'] == said['forward']}"
    )


def heads(ours: HookedWhisper) -> list[tuple[int, str, int]]:
    stack = ours.config.decoder
    return [
        (layer, attention, head)
        for layer in range(stack.n_layers)
        for attention in ATTENTIONS
        for head in range(stack.n_heads)
    ]


def ablations(
    name: str, ours: HookedWhisper, theirs: Any, mel: Tensor, n_tokens: int | None
) -> None:
    """Every decoder head set to zero in turn."""
    sites = heads(ours)
    limit = {} if n_tokens is None else {"max_new_tokens": n_tokens}
    rows = [zero(f"decoder.{layer}.{attention}.{head}") for layer, attention, head in sites]
    options = {} if not getattr(ours.generation_config, "lang_to_id", None) else {"language": "en"}
    ours.generate_rows(mel, rows[:2], **limit, **options)  # warm
    start = time.perf_counter()
    our_rows = [one.tokens for one in ours.generate_rows(mel, rows, **limit, **options)]
    ours_took = time.perf_counter() - start
    d_head = ours.config.decoder.d_head
    their_rows, theirs_took = [], 0.0
    for layer, attention, head in sites:
        module = getattr(theirs.model.decoder.layers[layer], ATTENTIONS[attention]).out_proj

        def silence(_: Any, args: tuple[Tensor], head: int = head) -> tuple[Tensor]:
            z = args[0].clone()
            z[..., head * d_head : (head + 1) * d_head] = 0
            return (z,)

        start = time.perf_counter()
        with module.register_forward_pre_hook(silence):
            asked = {"task": "transcribe"} | options if options else {}
            out = theirs.generate(mel, do_sample=False, **limit, **asked)
        theirs_took += time.perf_counter() - start
        end = theirs.generation_config.eos_token_id
        their_rows.append([token for token in out[0].tolist() if token != end])
    different = sum(a != b for a, b in zip(our_rows, their_rows, strict=True))
    print(
        f"{name:8} {len(rows)} heads ablated: generate_rows {ours_took:.2f} s, one generate each "
        f"{theirs_took:.2f} s, {theirs_took / ours_took:.1f} times faster; "
        f"{different} transcripts differ"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", help="A trained checkpoint, for the ablations.")
    parser.add_argument("--audio", help="A recording for it.")
    args = parser.parse_args()
    for name, pair in (("tiny", tiny()), ("nano", nano())):
        for hooked in (False, True):
            speed(name, *pair, args.tokens, args.rounds, hooked)
    replays("nano", *nano(), args.tokens, args.rounds)
    ours, theirs = tiny()
    endless(theirs, times=False)
    ablations("tiny", ours, theirs, torch.randn(1, 80, 3000), 30)
    ours, theirs = nano()
    ablations("nano", ours, theirs, ours.to_mel(clip("english").path), None)
    if args.model:
        ours = HookedWhisper.from_pretrained(args.model, dtype=torch.float32)
        ablations("trained", ours, ours.to_hf().eval(), ours.to_mel(args.audio), None)


if __name__ == "__main__":
    main()
