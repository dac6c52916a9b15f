"""What a sweep measures: functions of the logits that give one number for each clip.

A position `pos` is where the logits stand: those that predict the token at `pos + 1`. Any function
from logits `[batch pos d_vocab]` to a scalar or `[batch]` will do in their place; a `Metric` also
says which positions it reads, and no others are unembedded for it.
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
    """A named measure of logits; calling it gives one number for each clip.

    `at`: the positions that it reads, one or a slice of them, all if not said; `measure` is given
    the logits of these alone, in float32.
    """

    name: str
    measure: Callable[[Logits], PerClip] = field(repr=False)
    at: int | slice | None = None

    def __call__(self, logits: Logits) -> PerClip:
        reads = self.reads(logits.shape[1])
        return self.measure(logits[:, reads.start : reads.stop : reads.step].float())

    def reads(self, n_pos: int) -> range:
        """The positions that it reads of a run of so many tokens.

        >>> log_prob(7, pos=-1).reads(30)
        range(29, 30)

        Raises `IndexError` for a position that the run does not have.
        """
        there = range(n_pos)
        if isinstance(self.at, int):
            return range(there[self.at], there[self.at] + 1)
        return there if self.at is None else there[self.at]


def logit_diff(a: int, b: int, pos: int = -1) -> Metric:
    """Logit of token `a` less that of `b`, at one position (the last)."""
    return Metric(
        f"logit_diff({a}, {b}, pos={pos})", lambda here: here[:, 0, a] - here[:, 0, b], pos
    )


def log_prob(token: int, pos: int = -1) -> Metric:
    """Log-probability (nats) of a token at one position (the last)."""
    return Metric(
        f"log_prob({token}, pos={pos})", lambda here: here[:, 0].log_softmax(-1)[:, token], pos
    )


def transcript_log_prob(tokens: Tokens, from_position: int = 1) -> Metric:
    """Mean log-probability (nats) of the tokens from `from_position` on, given those before."""
    if from_position == 0:
        raise ValueError("nothing comes before the first token, to predict it from")

    def measure(here: Logits) -> PerClip:
        said = tokens[:, from_position:].to(here.device)
        return here.log_softmax(-1).gather(-1, said[..., None])[..., 0].mean(-1)

    name = f"transcript_log_prob(from_position={from_position})"
    return Metric(name, measure, slice(from_position - 1, -1))


def kl(logits_before: Logits, pos: int | None = None) -> Metric:
    """KL divergence (nats) from given logits to the new ones; mean over positions, or at one."""
    where = slice(None) if pos is None else slice(pos, pos + 1 or None)
    before = logits_before[:, where].float().log_softmax(-1)

    def measure(here: Logits) -> PerClip:
        after = here.log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean(-1)

    return Metric(f"kl(pos={pos})", measure, where)
