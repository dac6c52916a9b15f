"""The heads that follow the sound are found among those that do not."""

import pytest
import torch

from hooked_asr.speech import AlignmentError, alignment_scores, find_alignment_heads, rank_heads


def test_the_heads_that_follow_the_sound_come_first():
    follows = torch.eye(10).repeat_interleave(12, dim=1) / 12
    rests = torch.zeros_like(follows)
    rests[:, 3] = 1.0  # sharp, but at the same place whatever is said
    backwards = follows.flip(0)
    generator = torch.Generator().manual_seed(0)
    noise = (2 * torch.randn(2, 4, 10, 120, generator=generator)).softmax(-1)
    noise[0, 2] = follows
    noise[1, 0] = 0.5 * follows + 0.5 * noise[1, 0]
    noise[1, 1] = rests
    noise[1, 3] = backwards
    found = find_alignment_heads(noise)
    assert [(head.layer, head.head) for head in found[:2]] == [(0, 2), (1, 0)]
    scores = {(head.layer, head.head): head.score for head in found}
    assert len(scores) == 8
    assert scores[1, 1] == 0.0
    assert scores[1, 3] < 0.5


def test_scores_are_ranked():
    scores = torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    assert [(head.layer, head.head) for head in rank_heads(scores)] == [
        (0, 1),
        (1, 0),
        (0, 0),
        (1, 1),
    ]


@pytest.mark.parametrize("shape", [(0, 1, 2, 3), (1, 0, 2, 3), (1, 1, 0, 3), (1, 1, 2, 0)])
def test_nothing_to_score_is_refused(shape):
    with pytest.raises(AlignmentError):
        alignment_scores(torch.ones(shape))
