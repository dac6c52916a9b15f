"""Which cross-attention heads follow the sound, for a checkpoint that lists none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.speech.alignment import MEDIAN_WIDTH, token_salience
from hooked_asr.speech.dtw import AlignmentError, warping_path


@dataclass(frozen=True)
class AlignmentHead:
    """A cross-attention head of the decoder, and its `alignment_scores` score."""

    layer: int
    head: int
    score: float


def find_alignment_heads(
    patterns: Float[Tensor, "layer head pos audio"], median_width: int = MEDIAN_WIDTH
) -> list[AlignmentHead]:
    """Every cross-attention head, those that follow the sound best first.

    OpenAI's checkpoints list the heads "highly correlated to the word-level timing"; where a model
    lists none, its code takes all heads of the upper half of the layers. This goes by each head's
    `alignment_scores` instead. A clip of some ten seconds of speech will do; to go by several,
    average their scores and give them to `rank_heads`.

    Args:
        patterns: Cross-attention of every head, for the rows that `row_times` takes: those of the
            transcript, without the prompt. Cut to the encoder positions that hold the clip:
            behind its end all heads idle.
        median_width: As in `token_times`.

    Raises:
        AlignmentError: As `alignment_scores`.

    >>> follows = torch.eye(3).repeat_interleave(9, dim=1) / 9
    >>> idles = torch.full_like(follows, 1 / 27)
    >>> best, other = find_alignment_heads(torch.stack([idles, follows])[None])
    >>> best.layer, best.head, round(best.score, 2), other.score
    (0, 1, 1.41, 0.0)
    """
    return rank_heads(alignment_scores(patterns, median_width))


def alignment_scores(
    patterns: Float[Tensor, "layer head pos audio"], median_width: int = MEDIAN_WIDTH
) -> Float[Tensor, "layer head"]:
    """How much a head's attention stands out on the path that all heads agree on.

    That is its mean `token_salience` (in standard deviations over tokens) on the cells of the path
    that dynamic time warping finds for the mean of all heads: the very sum that the path of
    `row_times` makes large. A head that rests on one position scores 0, however sharply; one that
    goes a way of its own scores about 0, however steadily.

    On ten English clips, the heads that a refitted whisper-tiny.en lists score above its others in
    94 % of pairs. The attention itself, summed on that path, ranks 76 % so: it favours heads that
    mark a few words sharply.

    Raises `AlignmentError` for patterns without a head, a row or an encoder position.
    """
    if not patterns.numel():
        raise AlignmentError(
            f"patterns {tuple(patterns.shape)} [layer head pos audio] have an empty axis: give "
            "every cross-attention head, over one token and one encoder position at least"
        )
    # Layer by layer: the median filter needs several times the room of what it is given.
    salience = torch.stack([token_salience(layer, median_width) for layer in patterns])
    path = warping_path(-salience.mean(dim=(0, 1)).double().cpu().numpy())
    rows, columns = (torch.from_numpy(index).to(salience.device) for index in path)
    return salience[:, :, rows, columns].mean(dim=-1)


def rank_heads(scores: Float[Tensor, "layer head"]) -> list[AlignmentHead]:
    """The heads in the order of their scores, the best first.

    >>> rank_heads(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))[0]
    AlignmentHead(layer=1, head=1, score=3.0)
    """
    heads = [
        AlignmentHead(layer, head, score)
        for layer, row in enumerate(scores.tolist())
        for head, score in enumerate(row)
    ]
    return sorted(heads, key=lambda head: head.score, reverse=True)
