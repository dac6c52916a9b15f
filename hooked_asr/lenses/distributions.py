"""Distributions over the vocabulary, and how they stand to the one that the model ends with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "row d_vocab"]

_BLOCK = 64  # neighbouring tokens of which only the likeliest is looked at first


@dataclass(frozen=True)
class Distribution:
    """The next token's distribution in each of several rows; `Distribution.of(logits)`.

    Every number takes as few passes over the vocabulary as it can, for these are what a lens costs:
    `weights`, with `weight` in all, are what probabilities are in proportion to, and `log_total`
    is what logits lack to be logarithms of these.
    """

    logits: Rows
    weights: Rows
    weight: Float[Tensor, " row"]
    log_total: Float[Tensor, " row"]

    @classmethod
    def of(cls, logits: Rows) -> Distribution:
        """In float32 at least: half precision would round a sum over a vocabulary away."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        top = wide.amax(-1)
        weights = (wide - top[:, None]).exp_()
        weight = weights.sum(-1)
        return cls(wide, weights, weight, top + weight.log())

    @cached_property
    def top(self) -> Int[Tensor, " row"]:
        """The likeliest token; of several as likely the lowest id, as greedy decoding has it."""
        return self.top_tokens(1)[:, 0]

    def top_tokens(self, k: int) -> Int[Tensor, "row k"]:
        """The `k` likeliest tokens, the likeliest first; of several as likely the lowest id."""
        return greatest(self.logits, k)

    def entropy(self) -> Float[Tensor, " row"]:
        """Nats.

        >>> Distribution.of(torch.zeros(1, 8)).entropy()
        tensor([2.0794])
        """
        return self.log_total - self._mean_logit

    def kl_from(self, other: Distribution) -> Float[Tensor, " row"]:
        """KL(other ‖ this) in nats: what it costs to expect this where the other holds."""
        divergence = self.log_total - other.mean(self.logits) - other.entropy()
        return divergence.clamp(min=0.0)  # it is none below, but for rounding

    def ranks(self, tokens: Int[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        """How many tokens are likelier than each of these: 0 is the top; as likely do not count."""
        own = self.logits.gather(-1, tokens)
        # Ones and zeros as floats: sums over them are several times faster than over booleans.
        likelier = torch.empty_like(self.logits)
        for i in range(tokens.shape[-1]):
            torch.gt(self.logits, own[:, i, None], out=likelier)
            own[:, i] = likelier.sum(-1)
        return own

    def probs_of(self, tokens: Int[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        return self.weights.gather(-1, tokens) / self.weight[:, None]

    def mean(self, values: Rows) -> Float[Tensor, " row"]:
        """Expected value; what cannot happen adds nothing, though its own may be infinite."""
        terms = self.weights * values
        mean = terms.sum(-1)
        if mean.isnan().any():
            mean = torch.where(self.weights > 0, terms, 0.0).sum(-1)
        return mean / self.weight

    @cached_property
    def _mean_logit(self) -> Float[Tensor, " row"]:
        return self.mean(self.logits)


def greatest(numbers: Rows, k: int) -> Int[Tensor, "row k"]:
    """Where the `k` greatest of each row are, the greatest first; of equals the first one.

    As `torch.topk`, which leaves the order of equals open, and takes a long vocabulary one by one:
    here only the blocks with the greatest maxima are gone through.

    >>> greatest(torch.tensor([[3.0, 7.0, 7.0, 5.0]]), 3)
    tensor([[1, 2, 3]])
    """
    whole = numbers.shape[-1] // _BLOCK
    if whole <= k:
        return _first(numbers, k)
    maxima = numbers[:, : whole * _BLOCK].unflatten(-1, (whole, _BLOCK)).amax(-1)
    # In their own order, so that of equals in several blocks, too, the first one is found.
    blocks = _first(maxima, k).sort(-1).values
    inside = torch.arange(_BLOCK, device=numbers.device)
    behind = torch.arange(whole * _BLOCK, numbers.shape[-1], device=numbers.device)
    places = torch.cat(
        [
            (blocks[..., None] * _BLOCK + inside).flatten(1),
            behind.expand(len(numbers), -1),
        ],
        -1,
    )
    return places.gather(-1, _first(numbers.gather(-1, places), k))


def _first(numbers: Float[Tensor, "row n"], k: int) -> Int[Tensor, "row k"]:
    """As `greatest`, of few numbers."""
    values, places = numbers.topk(min(k + 1, numbers.shape[-1]))
    if (values[:, 1:] == values[:, :-1]).any():
        places = numbers.sort(dim=-1, descending=True, stable=True).indices
    return places[:, :k]


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
