"""Attributions on trained weights: how well each method's agree with exact patching.

`python tests/checkpoint/test_attribution_nano.py` prints the table of all that is measured here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from hooked_asr import HookedWhisper
from hooked_asr.audio import load_audio
from hooked_asr.nano import bundle
from hooked_asr.nano.noise import add_noise, noise
from hooked_asr.patching import (
    SweepResult,
    attribution,
    compare,
    components,
    heads,
    sweep,
    transcript_log_prob,
)

# All bundled sentences, and how loud the noises are beside them (dB).
SENTENCES = ("english", "scottish", "spanish", "german", "likely", "unlikely")
NOISES = (("white", 10.0), ("pink", 10.0))
SITES = {
    "encoder.attn": heads("encoder.attn"),
    "decoder.attn": heads("decoder.attn"),
    "decoder.cross_attn": heads("decoder.cross_attn"),
    "encoder.mlp": components("encoder", "mlp"),
    "decoder.mlp": components("decoder", "mlp"),
    "encoder.resid_post": components("encoder", "resid_post"),
    "decoder.resid_post": components("decoder", "resid_post"),
}
HEADS = list(SITES)[:3]
METHODS = ("plain", "integrated", "atp*")


@dataclass(frozen=True)
class Pair:
    """A clip and the same clip in noise, both with the text that was said."""

    name: str
    clean: dict[str, Any]
    reference: dict[str, Any]
    n_prompt: int


def load_model() -> HookedWhisper:
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


def noisy_pairs(model: HookedWhisper) -> list[Pair]:
    return [noisy_pair(model, name, *sound) for name in SENTENCES for sound in NOISES]


def noisy_pair(model: HookedWhisper, name: str, kind: str, snr: float) -> Pair:
    clip = bundle.clip(name)
    speech = load_audio(clip.path).numpy()
    sound = noise(kind, len(speech), np.random.default_rng(0))
    clean, noisy = (
        model.to_inputs(torch.from_numpy(samples), text=clip.text, language=clip.language)
        for samples in (speech, add_noise(speech, sound, snr))
    )
    return Pair(f"{name}, {kind}", clean, noisy, len(model.prompt(clip.language)))


def margin(model: HookedWhisper, pair: Pair) -> Any:
    """How far each said token's logit is above the strongest other's of the clean run."""
    said = pair.clean["tokens"][:, pair.n_prompt :, None]
    at = slice(pair.n_prompt - 1, -1)
    with torch.no_grad():
        before = model(**pair.clean)[:, at]
    other = before.scatter(-1, said, -torch.inf).argmax(-1, keepdim=True)

    def margin(logits):
        here = logits[:, at]
        return (here.gather(-1, said) - here.gather(-1, other)).mean((1, 2))

    return margin


def measure(
    model: HookedWhisper, pair: Pair, metric: Any, methods: tuple[str, ...], parts: list[str]
) -> dict[tuple[str, str], tuple[SweepResult, SweepResult]]:
    """Exact and estimated results, by part and method."""
    options = {"clean": pair.clean, "reference": pair.reference, "metric": metric}
    options["progress"] = False
    sites = [SITES[part] for part in parts]
    exact = [sweep(model, sites=one, **options) for one in sites]
    return {
        (part, method): (one, estimate)
        for method in methods
        for part, one, estimate in zip(
            parts,
            exact,
            attribution(model, sites=sites, method=method, steps=5, **options),
            strict=True,
        )
    }


def pooled(measured: list, parts: list[str], method: str) -> Any:
    both = [one[part, method] for one in measured for part in parts]
    return compare([exact for exact, _ in both], [estimate for _, estimate in both])


@pytest.mark.long
def test_estimates_of_heads_agree_with_exact_patching():
    """Plain estimates of all heads; integrated ones also within each attention.

    Alone, the encoder's heads are where the plain estimate is weakest: 0.95 over these pairs, less
    in louder noise.
    """
    model = load_model()
    pairs = noisy_pairs(model)
    found = [measure(model, pair, margin(model, pair), ("plain",), HEADS) for pair in pairs]
    assert pooled(found, HEADS, "plain").pearson >= 0.95
    for part in ("decoder.attn", "decoder.cross_attn"):
        for one in found:
            assert compare(*one[part, "plain"]).pearson >= 0.95
    every_other = [
        measure(model, pair, margin(model, pair), ("integrated",), HEADS) for pair in pairs[::2]
    ]
    for part in HEADS:
        assert pooled(every_other, [part], "integrated").pearson >= 0.95
    assert pooled(every_other, HEADS, "integrated").pearson >= 0.98


def report() -> None:
    """Pearson of each pair, then of all together."""
    model = load_model()
    pairs = noisy_pairs(model)
    for name in ("margin", "transcript_log_prob"):
        found = []
        for pair in pairs:
            metric = margin(model, pair)
            if name != "margin":
                metric = transcript_log_prob(pair.clean["tokens"], pair.n_prompt)
            found.append(measure(model, pair, metric, METHODS, list(SITES)))
        for part in SITES:
            for method in METHODS:
                each = [compare(*one[part, method]).pearson for one in found]
                print(name, part, method, " ".join(f"{r:.2f}" for r in each), end=" | ")
                together = pooled(found, [part], method)
                print(f"pooled {together.pearson:.3f}, ranks {together.spearman:.3f}")
        for method in METHODS:
            together = pooled(found, HEADS, method)
            print(name, "all heads", method, f"{together.pearson:.3f} {together.spearman:.3f}")


if __name__ == "__main__":
    report()
