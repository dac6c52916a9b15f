"""Times of tokens are transformers', from the same attention."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.whisper import generation_whisper as reference

from hooked_asr.speech import AlignmentError, row_times, token_times


def random_attention(*shape, seed=0, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator)).softmax(-1)


def their_timestamps(attention, num_frames=None, n_prompt=2, median_width=7):
    """`_extract_token_timestamps` for `[batch head pos audio]`, as the one layer of a decoding."""
    model = SimpleNamespace(
        config=SimpleNamespace(decoder_layers=1, median_filter_width=median_width)
    )

    class Outputs(SimpleNamespace):
        def __contains__(self, name):
            return hasattr(self, name)

    outputs = Outputs(
        cross_attentions=[(attention,)], sequences=torch.zeros(len(attention), 1, dtype=torch.long)
    )
    heads = [(0, head) for head in range(attention.shape[1])]
    extract = reference.WhisperGenerationMixin._extract_token_timestamps
    return extract(model, outputs, heads, num_frames=num_frames, num_input_ids=n_prompt)


def our_timestamps(patterns, n_audio=None, n_prompt=2, median_width=7):
    """The same list for one clip: zeros for the prompt, ends of tokens, the last one again."""
    ends = token_times(patterns, n_prompt, n_audio, median_width=median_width)[:, 1]
    return torch.cat([torch.zeros(n_prompt), ends, ends[-1:]]).float()


@pytest.mark.parametrize("n_prompt", [1, 2, 4])
@pytest.mark.parametrize("n_heads", [1, 6])
@pytest.mark.parametrize(("n_pos", "n_audio"), [(6, 50), (30, 200), (40, 20), (5, 3), (12, 2)])
@pytest.mark.parametrize("sharpness", [0.3, 4.0])
def test_times_are_transformers(n_prompt, n_heads, n_pos, n_audio, sharpness):
    attention = random_attention(3, n_heads, n_pos, n_audio, seed=n_pos, sharpness=sharpness)
    theirs = their_timestamps(attention, n_prompt=n_prompt)
    for clip, expected in zip(attention, theirs, strict=True):
        assert torch.equal(our_timestamps(clip, n_prompt=n_prompt), expected)


@pytest.mark.parametrize("median_width", [1, 3, 9])
def test_the_median_filters_width_is_the_configs(median_width):
    attention = random_attention(1, 4, 12, 80)
    theirs = their_timestamps(attention, median_width=median_width)[0]
    assert torch.equal(our_timestamps(attention[0], median_width=median_width), theirs)


@pytest.mark.parametrize("num_frames", [[60, 60, 60], [60, 33, 100], [4, 5, 99]])
def test_what_lies_behind_the_clip_is_cut_off(num_frames):
    attention = random_attention(3, 4, 9, 50)
    theirs = their_timestamps(attention, num_frames=num_frames)
    for clip, frames, expected in zip(attention, num_frames, theirs, strict=True):
        assert torch.equal(our_timestamps(clip, n_audio=frames // 2), expected)


def test_one_token_lasts_from_the_start():
    attention = random_attention(1, 4, 3, 50)
    assert torch.equal(our_timestamps(attention[0]), their_timestamps(attention)[0])
    assert token_times(attention[0], n_prompt=2).tolist() == [[0.0, 0.0]]


def test_a_prompt_alone_has_no_times():
    assert token_times(random_attention(4, 3, 50), n_prompt=3).shape == (0, 2)
    assert row_times(random_attention(4, 0, 50)).shape == (0,)


def test_the_prompts_last_row_moves_every_token_one_row_up():
    patterns = random_attention(4, 9, 60, sharpness=3.0)
    turns = row_times(patterns[:, 2:])
    with_row = token_times(patterns, n_prompt=3, prompt_row=True)
    assert torch.equal(with_row, torch.stack([turns[:-1], turns[1:]], -1))
    without = token_times(patterns, n_prompt=2)
    assert torch.equal(without[1:], with_row)  # the row's own token comes first there


def test_times_are_whole_encoder_positions():
    times = token_times(random_attention(2, 20, 90), n_prompt=1)
    steps = times / 0.02
    assert torch.allclose(steps, steps.round(), atol=1e-9, rtol=0)
    assert (times.diff(dim=1) >= 0).all()
    assert torch.equal(times[1:, 0], times[:-1, 1])


def test_a_position_that_all_rows_attend_to_alike_says_nothing():
    patterns = torch.zeros(1, 3, 12)
    patterns[0, torch.arange(3), torch.arange(3) * 4] = 1.0  # the reference makes NaN of the others
    assert row_times(patterns, median_width=1).isfinite().all()
    assert row_times(torch.ones(2, 3, 12)).isfinite().all()


def test_half_precision_is_aligned_in_full():
    patterns = random_attention(4, 12, 80).half()
    assert torch.equal(row_times(patterns), row_times(patterns.float()))


@pytest.mark.parametrize(
    ("patterns", "options"),
    [
        (torch.ones(0, 3, 9), {}),
        (torch.ones(1, 3, 9), {"n_audio": 0}),
        (torch.ones(1, 3, 9), {"n_audio": 10}),
        (torch.ones(1, 3, 9), {"median_width": 4}),
        (torch.ones(1, 3, 9), {"median_width": 0}),
        (torch.ones(1, 3, 9), {"n_prompt": 4}),
        (torch.ones(1, 3, 9), {"n_prompt": -1}),
        (torch.ones(1, 3, 9), {"n_prompt": 0, "prompt_row": True}),
        (torch.full((1, 3, 9), torch.nan), {}),
    ],
)
def test_what_cannot_be_aligned_is_refused(patterns, options):
    with pytest.raises(AlignmentError):
        token_times(patterns, **{"n_prompt": 1, **options})
