"""What a sweep measures: functions of the logits that give one number for each clip.

A position `pos` is where the logits stand: those that predict the token at `pos + 1`. Any function
from logits `[batch pos d_vocab]` to a scalar or `[batch]` will do in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from hooked_asr.shapes import Logits, Tokens

PerClip = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Metric:
    """A named measure of logits; calling it gives one number for each clip."""

    name: str
    measure: Callable[[Logits], PerClip] = field(repr=False)

    def __call__(self, logits: Logits) -> PerClip:
        return self.measure(logits.float())


def logit_diff(a: int, b: int, pos: int = -1) -> Metric:
    """Logit of token `a` less that of `b`, at one position (the last)."""
    return Metric(
        f"logit_diff({a}, {b}, pos={pos})", lambda logits: logits[:, pos, a] - logits[:, pos, b]
    )


def log_prob(token: int, pos: int = -1) -> Metric:
    """Log-probability (nats) of a token at one position (the last)."""
    return Metric(
        f"log_prob({token}, pos={pos})", lambda logits: logits[:, pos].log_softmax(-1)[:, token]
    )


def transcript_log_prob(tokens: Tokens, from_position: int = 1) -> Metric:
    """Mean log-probability (nats) of the tokens from `from_position` on, given those before."""
    if from_position == 0:
        raise ValueError("nothing comes before the first token, to predict it from")

    def measure(logits: Logits) -> PerClip:
        said = tokens[:, from_position:].to(logits.device)
        predicted = logits[:, from_position - 1 : -1].log_softmax(-1)
        return predicted.gather(-1, said[..., None])[..., 0].mean(-1)

    return Metric(f"transcript_log_prob(from_position={from_position})", measure)


def kl(logits_before: Logits, pos: int | None = None) -> Metric:
    """KL divergence (nats) from given logits to the new ones; mean over positions, or at one."""
    where = slice(None) if pos is None else slice(pos, pos + 1 or None)
    before = logits_before[:, where].float().log_softmax(-1)

    def measure(logits: Logits) -> PerClip:
        after = logits[:, where].log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean(-1)

    return Metric(f"kl(pos={pos})", measure)
