"""Hypotheses of a beam search: what was said so far, in several ways for each clip."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.shapes import Tokens

# In the place of -inf, as in the reference, whose scores stay finite: a place that nobody fills can
# be told from a token that no rule allows.
NEVER = -1e9

Scores = Float[Tensor, "clip beam d_vocab"]


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """Several hypotheses for each clip.

    - `tokens`: prompt and new tokens, all of one length; behind `n_tokens` of them is padding.
    - `scores`: what they are ranked by.
    - `logprobs`: the new tokens' log-probabilities (nats) under the rules, padded as they are.
    - `done`: whether nothing can follow.
    """

    tokens: Int[Tensor, "clip beam pos"]
    n_tokens: Int[Tensor, "clip beam"]
    scores: Float[Tensor, "clip beam"]
    logprobs: Float[Tensor, "clip beam _"]
    done: Bool[Tensor, "clip beam"]

    @classmethod
    def of_prompt(cls, prompt: Tokens, n: int) -> Hypotheses:
        """`n` places for each clip that hold its prompt and nothing else, and score `NEVER`."""
        nothing = torch.zeros(len(prompt), n, device=prompt.device)
        return cls(
            tokens=prompt[:, None].expand(-1, n, -1),
            n_tokens=nothing.long() + prompt.shape[1],
            scores=nothing + NEVER,
            logprobs=nothing[..., None][..., :0],
            done=nothing.bool(),
        )

    def picked(self, places: Int[Tensor, "clip place"]) -> Hypotheses:
        """Those at these places of each clip."""
        return Hypotheses(
            tokens=self.tokens.take_along_dim(places[..., None], dim=1),
            n_tokens=self.n_tokens.gather(1, places),
            scores=self.scores.gather(1, places),
            logprobs=self.logprobs.take_along_dim(places[..., None], dim=1),
            done=self.done.gather(1, places),
        )

    def beside(self, others: Hypotheses) -> Hypotheses:
        """These, and others behind them."""
        return Hypotheses(
            *(
                torch.cat([getattr(self, field.name), getattr(others, field.name)], dim=1)
                for field in fields(self)
            )
        )

    def padded(self, padding: int) -> Hypotheses:
        """The same, one position longer."""
        return replace(
            self,
            tokens=F.pad(self.tokens, (0, 1), value=padding),
            logprobs=F.pad(self.logprobs, (0, 1)),
        )


def likeliest_continuations(
    beams: Hypotheses, scores: Scores, n: int
) -> tuple[Hypotheses, Int[Tensor, "clip n"]]:
    """The `n` best of each clip with one more token, best first, and which beams they continue.

    `scores`: those of the next token, to be added to the beams' own.
    """
    d_vocab = scores.shape[-1]
    totals = (scores + beams.scores[..., None]).flatten(1)
    best, places = totals.topk(n)
    parents = places.div(d_vocab, rounding_mode="floor")
    before = beams.picked(parents)
    logprobs = scores.log_softmax(-1).flatten(1).gather(1, places)
    continuations = Hypotheses(
        tokens=torch.cat([before.tokens, (places % d_vocab)[..., None]], dim=2),
        n_tokens=before.n_tokens + 1,
        scores=best,
        logprobs=torch.cat([before.logprobs, logprobs[..., None]], dim=2),
        done=before.done,
    )
    return continuations, parents
