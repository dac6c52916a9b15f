"""Distributions over the vocabulary, and how they stand to the one that the model ends with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "row d_vocab"]


@dataclass(frozen=True)
class Distribution:
    """The next token's distribution in each of several rows; `Distribution.of(logits)`."""

    logits: Rows
    log_probs: Rows
    probs: Rows

    @classmethod
    def of(cls, logits: Rows) -> Distribution:
        """In float32 at least: half precision would round a sum over a vocabulary away."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probs = wide.log_softmax(-1)
        return cls(wide, log_probs, log_probs.exp())

    @property
    def top(self) -> Int[Tensor, " row"]:
        """The likeliest token; of several as likely the lowest id, as greedy decoding has it."""
        return self.logits.argmax(-1)

    def entropy(self) -> Float[Tensor, " row"]:
        """Nats.

        >>> Distribution.of(torch.zeros(1, 8)).entropy().exp()
        tensor([8.0000])
        """
        return -_expectation(self.probs, self.log_probs)

    def kl_from(self, other: Distribution) -> Float[Tensor, " row"]:
        """KL(other ‖ this) in nats: what it costs to expect this where the other holds."""
        return _expectation(other.probs, other.log_probs - self.log_probs)

    def ranks(self, tokens: Int[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        """How many tokens are likelier than each of these: 0 is the top; as likely do not count."""
        own = self.logits.gather(-1, tokens)
        counts = [(self.logits > one[:, None]).sum(-1) for one in own.T]
        return torch.stack(counts, -1).float() if counts else own

    def top_tokens(self, k: int) -> Int[Tensor, "row k"]:
        """The `k` likeliest tokens, `top` first."""
        # Lifted, for topk alone says nothing of the order of those as likely.
        lifted = self.logits.scatter(-1, self.top[:, None], math.inf)
        return lifted.topk(k).indices

    def probs_of(self, tokens: Int[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        return self.probs.gather(-1, tokens)


def compare(
    here: Distribution, final: Distribution, ahead: Int[Tensor, "row ahead"], top_k: int
) -> dict[str, Float[Tensor, "row ..."] | Int[Tensor, "row top"]]:
    """What a lens keeps of a distribution, by the fields of `LogitLens`."""
    top = here.top_tokens(top_k)
    asked = torch.cat([final.top[:, None], ahead], -1)
    ranks, probs = here.ranks(asked), here.probs_of(asked)
    return {
        "top_tokens": top,
        "top_probs": here.probs_of(top),
        "entropy": here.entropy(),
        "kl": here.kl_from(final),
        "final_rank": ranks[:, 0],
        "final_prob": probs[:, 0],
        "ahead_rank": ranks[:, 1:],
        "ahead_prob": probs[:, 1:],
    }


def _expectation(probs: Rows, values: Rows) -> Float[Tensor, " row"]:
    """What cannot happen adds nothing, though its logarithm is infinite."""
    return torch.where(probs > 0, probs * values, 0.0).sum(-1)
