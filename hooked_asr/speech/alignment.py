"""When each token is spoken, read off the cross-attention of a few heads that follow the sound.

The method is OpenAI's for the word timestamps of Whisper ("Robust Speech Recognition via
Large-Scale Weak Supervision", 2022; `timing.py` of its repository), as transformers has it in
`WhisperForConditionalGeneration._extract_token_timestamps`: the same numbers come out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.speech.dtw import AlignmentError, warping_path

POSITIONS_PER_SECOND = 50.0  # encoder positions: half as many as log-mel frames
MEDIAN_WIDTH = 7  # encoder positions; `median_filter_width` in a checkpoint's config

Patterns = Float[Tensor, "head pos audio"]


def token_times(
    patterns: Patterns,
    n_prompt: int,
    n_audio: int | None = None,
    prompt_row: bool = False,
    median_width: int = MEDIAN_WIDTH,
    positions_per_second: float = POSITIONS_PER_SECOND,
) -> Float64[Tensor, "token start_end"]:
    """When each token behind the prompt starts and ends, in seconds from the start of the window.

    A position attends to the sound of the token that it predicts, the next one. So a token is over
    when the turn of its own row comes (see `row_times`), and it starts when that of the row before
    it does. What the position of the very last token attends to is no part of the transcript: give
    the rows up to the one before it, which are all that decoding runs through; there is then a
    time for every token but that one, the end token.

    Args:
        patterns: Cross-attention of the alignment heads, a row for each position that was run,
            prompt and tokens.
        n_prompt: Tokens of the prompt.
        n_audio: Encoder positions that hold the clip (log-mel frames // 2), where the window is
            longer; all of them, if not given.
        prompt_row: Whether the prompt's last position has a part in the alignment. By default it
            has none and the first token starts at 0.0, as in transformers: right where that token
            is a time stamp. Where the prompt ends in <|notimestamps|> the first token is a word,
            and its time is in that row, as OpenAI's own code has it.
        median_width: Encoder positions that the median filter sees at once; odd.
        positions_per_second: Encoder positions of one second of sound.

    Raises:
        AlignmentError: As `row_times`; or the prompt has no row to give, or more than there are.

    >>> heads = torch.eye(4).repeat_interleave(10, dim=1)[None]  # each row attends for 0.2 s
    >>> token_times(heads, n_prompt=1, prompt_row=True)
    tensor([[0.0000, 0.2000],
            [0.2000, 0.4000],
            [0.4000, 0.6000]], dtype=torch.float64)
    """
    first = n_prompt - prompt_row
    if not 0 <= first <= patterns.shape[1]:
        raise AlignmentError(
            f"a prompt of {n_prompt} tokens (prompt_row={prompt_row}) does not fit patterns "
            f"{tuple(patterns.shape)} [head pos audio]: they need a row for each of its tokens"
        )
    turns = row_times(patterns[:, first:], n_audio, median_width, positions_per_second)
    bounds = turns if prompt_row else F.pad(turns, (1, 0))
    return torch.stack([bounds[:-1], bounds[1:]], dim=-1)


def row_times(
    patterns: Patterns,
    n_audio: int | None = None,
    median_width: int = MEDIAN_WIDTH,
    positions_per_second: float = POSITIONS_PER_SECOND,
) -> Float64[Tensor, " pos"]:
    """When the turn of each row comes (s), where the rows share the sound among them in order.

    The first row's is always 0.0. transformers' `_extract_token_timestamps` gives these numbers for
    the positions behind the prompt, then the last of them once more, for the end token.

    Raises `AlignmentError` for patterns of no head, an `n_audio` that is not among the encoder
    positions, NaN in the patterns, or a `median_width` that is not odd.
    """
    n_audio = patterns.shape[-1] if n_audio is None else n_audio
    if not patterns.shape[0] or not 1 <= n_audio <= patterns.shape[-1]:
        raise AlignmentError(
            f"n_audio={n_audio} of patterns {tuple(patterns.shape)} [head pos audio] leaves "
            "nothing to align: it needs a head, and from 1 to all of the encoder positions"
        )
    if not patterns.shape[1]:
        return torch.zeros(0, dtype=torch.float64)
    salience = token_salience(patterns[..., :n_audio], median_width).mean(dim=0)
    rows, columns = warping_path(-salience.double().cpu().numpy())
    turns = torch.from_numpy(columns)[torch.from_numpy(rows).diff(prepend=torch.tensor([-1])) > 0]
    return turns.double() / positions_per_second


def token_salience(
    patterns: Float[Tensor, "*head pos audio"], median_width: int = MEDIAN_WIDTH
) -> Float[Tensor, "*head pos audio"]:
    """How much more a row attends to a position than the rows do on average, in their deviations.

    Then a median over neighbouring positions, which takes out lone peaks. Where all rows attend
    alike nothing stands out, and it is 0; the reference divides 0 by 0 there.
    """
    # Half precision would decide between neighbouring positions by its rounding.
    patterns = patterns if patterns.dtype == torch.float64 else patterns.float()
    std = patterns.std(dim=-2, keepdim=True, correction=0)
    centred = patterns - patterns.mean(dim=-2, keepdim=True)
    return _median_filter(torch.where(std == 0, 0.0, centred / std), median_width)


def _median_filter(
    salience: Float[Tensor, "*head pos audio"], width: int
) -> Float[Tensor, "*head pos audio"]:
    if width < 1 or width % 2 == 0:
        raise AlignmentError(f"median_width must be odd, and at least 1; got {width}")
    margin = width // 2
    if salience.shape[-1] <= margin:  # too short to be mirrored at its ends
        return salience
    flat = salience.flatten(0, -2)[:, None]
    padded = F.pad(flat, (margin, margin), mode="reflect").view(*salience.shape[:-1], -1)
    return padded.unfold(-1, width, 1).median(dim=-1).values
