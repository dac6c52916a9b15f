"""What a sweep measures: functions of the logits that give one number for each clip.

A position `pos` is where the logits stand: those that predict the token at `pos + 1`. Any function
from logits `[batch pos d_vocab]` to a scalar or `[batch]` will do in their place; a `Metric` also
says which positions it reads, and no others are unembedded for it.

A token is an id, or, where clips differ, a tensor of an id for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.shapes import Logits, Tokens

PerClip = Float[Tensor, " batch"]
Token = int | Int[Tensor, " _"]


class MetricError(HookedASRError):
    """A metric that was not understood, or does not fit the run."""


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


# --- One token at one position --------------------------------------------------------------------


def logit(token: Token, pos: int = -1) -> Metric:
    """Logit of a token at one position (the last)."""
    return Metric(f"logit({_name(token)}, pos={pos})", lambda here: _of(here[:, 0], token), pos)


def logit_diff(a: Token, b: Token, pos: int = -1) -> Metric:
    """Logit of token `a` less that of `b`, at one position (the last)."""
    return Metric(
        f"logit_diff({_name(a)}, {_name(b)}, pos={pos})",
        lambda here: _of(here[:, 0], a) - _of(here[:, 0], b),
        pos,
    )


def log_prob(token: Token, pos: int = -1) -> Metric:
    """Log-probability (nats) of a token at one position (the last)."""
    return Metric(
        f"log_prob({_name(token)}, pos={pos})",
        lambda here: _of(here[:, 0].log_softmax(-1), token),
        pos,
    )


def prob(token: Token, pos: int = -1) -> Metric:
    """Probability of a token at one position (the last)."""
    return Metric(
        f"prob({_name(token)}, pos={pos})", lambda here: _of(here[:, 0].softmax(-1), token), pos
    )


def rank(token: Token, pos: int = -1) -> Metric:
    """How many tokens are likelier than this one at one position (the last): 0 is the top.

    Tokens as likely do not count.
    """

    def measure(here: Logits) -> PerClip:
        return (here[:, 0] > _of(here[:, 0], token)[:, None]).sum(-1).float()

    return Metric(f"rank({_name(token)}, pos={pos})", measure, pos)


def preference(
    acoustic: Token | Sequence[int], contextual: Token | Sequence[int], pos: int = -1
) -> Metric:
    """Log-probability (nats) of the word that was said less that of the word the context suggests.

    Above 0 the model goes by the sound, below 0 by what is likely. With "We eat white lice every
    day" said, `acoustic` is " lice" and `contextual` " rice".

    - Words of one token each: the difference of their log-probabilities at `pos`, which is where
      both come next. Both share one normaliser, so that it is their `logit_diff` too.
    - Words of several tokens: what they begin with alike makes no difference to the difference, so
      it is that of the first tokens in which they differ, read at the position behind what is
      alike: `pos` plus as many tokens. The run has to hold these (one forced with either word
      does). What comes behind is not weighed: to sum over whole words that differ in more than one
      token, a run would have to be forced with each.

    Raises `MetricError` for a word that is the beginning of the other, or a run that, counted from
    its end, is over before they differ.
    """
    a, b = (_word(word) for word in (acoustic, contextual))
    if isinstance(a, list) and isinstance(b, list):
        alike = len(list(takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False))))
        if alike == min(len(a), len(b)):
            raise MetricError(
                f"the words {a} and {b} do not differ before one of them ends: give the tokens "
                "behind it too"
            )
        if pos < 0 <= pos + alike:
            raise MetricError(
                f"the words differ {alike} tokens behind pos={pos}, where the run is over: give "
                "the position at which both come next, in a run forced with one of them"
            )
        difference = logit_diff(a[alike], b[alike], pos + alike)
    elif isinstance(a, list) or isinstance(b, list):
        raise MetricError("give both words as ids of one clip, or both as a tensor of clips")
    else:
        difference = logit_diff(a, b, pos)
    return replace(difference, name=f"preference({_name(a)}, {_name(b)}, pos={pos})")


# --- Whole runs -----------------------------------------------------------------------------------


def transcript_log_prob(tokens: Tokens, from_position: int = 1) -> Metric:
    """Mean log-probability (nats) of the tokens from `from_position` on, given those before.

    One row of tokens stands for every clip.
    """
    if from_position == 0:
        raise MetricError("nothing comes before the first token, to predict it from")

    def measure(here: Logits) -> PerClip:
        said = _for_each(tokens[:, from_position:], len(here), here.device)
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


def _of(values: Float[Tensor, "batch d_vocab"], token: Token) -> PerClip:
    """A token's value in each clip."""
    if isinstance(token, int):
        return values[:, token]
    return values.gather(-1, _for_each(token[:, None], len(values), values.device))[:, 0]


def _for_each(tokens: Int[Tensor, "_ pos"], n_clips: int, device: torch.device) -> Tokens:
    """A row of tokens for each clip, of which one may stand for all."""
    if len(tokens) not in (1, n_clips):
        raise MetricError(
            f"tokens of {len(tokens)} clips, but the run has {n_clips}: give one row for each, or "
            "one for all"
        )
    return tokens.to(device).expand(n_clips, -1)


def _word(word: Token | Sequence[int]) -> list[int] | Int[Tensor, " _"]:
    if isinstance(word, Tensor):
        return word
    return [word] if isinstance(word, int) else list(word)


def _name(token: Token | Sequence[int]) -> str:
    ids = _word(token)
    numbers = ids.tolist() if isinstance(ids, Tensor) else ids
    return str(numbers[0] if len(numbers) == 1 else numbers)
