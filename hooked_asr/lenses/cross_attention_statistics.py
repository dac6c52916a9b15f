"""Where in time attention goes, in numbers: how much, how spread, when, and whether in order."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_FEWEST = 3  # tokens between which an order means anything
_TIED = 3  # decimals of a second: moments that share a millisecond are no order


def entropy(weights: Float[Tensor, "*rows audio"]) -> Float[Tensor, "*rows"]:
    """Nats, of weights scaled to sum to 1; NaN where all are 0.

    >>> entropy(torch.full((8,), 0.1)).exp()
    tensor(8.0000)
    """
    of_each: Tensor = torch.special.entr(_shared_out(weights))
    return of_each.sum(-1)


def centre(
    weights: Float[Tensor, "*rows audio"], seconds: Float[Tensor, " audio"]
) -> Float[Tensor, "*rows"]:
    """The mean moment (s) of what is attended to; NaN where nothing is.

    >>> centre(torch.tensor([0.0, 0.1, 0.3]), torch.tensor([0.0, 0.02, 0.04]))
    tensor(0.0350)
    """
    return (_shared_out(weights) * seconds).sum(-1)


def peak(
    weights: Float[Tensor, "*rows audio"], seconds: Float[Tensor, " audio"]
) -> Float[Tensor, "*rows"]:
    """The moment (s) that is attended to most, the first of several; NaN where nothing is."""
    return torch.where(weights.sum(-1) > 0, seconds[weights.argmax(-1)], math.nan)


def monotonicity(centres: Float[Tensor, "*head token"]) -> Float[Tensor, "*head"]:
    """Whether later tokens attend to later moments: Spearman's rank correlation of the two orders.

    1 where every token's centre of attention (s) is behind that of the token before, -1 where it is
    always before it, about 0 where the one says nothing of the other. It is of the order alone: a
    head may creep. Moments in the same millisecond tie. NaN for fewer than three tokens, for
    centres that all tie, and where a token attends to nothing.

    Source: "The proof and measurement of association between two things" (1904), with the mean rank
    for ties.

    >>> on, back, about = [0.2, 0.5, 0.9, 1.4], [1.4, 0.9, 0.5, 0.2], [0.2, 1.4, 0.5, 0.9]
    >>> monotonicity(torch.tensor([on, back, about]))
    tensor([ 1.0000, -1.0000,  0.4000])
    """
    n_tokens = centres.shape[-1]
    if n_tokens < _FEWEST:
        return torch.full(centres.shape[:-1], math.nan)
    ranks = _centred(_ranks(centres.double().round(decimals=_TIED)))
    order = _centred(torch.arange(n_tokens, dtype=torch.float64))
    rho = (ranks * order).sum(-1) / (ranks.norm(dim=-1) * order.norm())
    return torch.where(centres.isnan().any(-1), math.nan, rho).float()


def _shared_out(weights: Float[Tensor, "*rows audio"]) -> Float[Tensor, "*rows audio"]:
    return weights / weights.sum(-1, keepdim=True)


def _ranks(values: Float[Tensor, "*head token"]) -> Float[Tensor, "*head token"]:
    """How many values are below each, ties counted half."""
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).double().sum(-1) + (one == other).double().sum(-1) / 2


def _centred(values: Float[Tensor, "*head token"]) -> Float[Tensor, "*head token"]:
    return values - values.mean(-1, keepdim=True)
