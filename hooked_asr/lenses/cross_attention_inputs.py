"""What a cross-attention lens reads: which clips, where they are heard, and what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from hooked_asr import timing
from hooked_asr.generation import end_tokens
from hooked_asr.lenses.errors import LensError
from hooked_asr.models.audio_spans import frame_counts
from hooked_asr.patching.operations import Inputs
from hooked_asr.shapes import TokenMask

_ANSWER = "<|im_start|>assistant\n"  # how Qwen2's chat template opens the model's own turn


@dataclass(frozen=True)
class Clips:
    """The clips of a run: the row that reads each, and the places `[start, stop)` it looks at.

    Encoder positions for Whisper, one clip a row. Where audio is a prefix, decoder positions: a row
    may hold several clips, or none.

    - `clock`: what one such place is (see `timing.FRAMES`).
    """

    rows: list[int]
    places: list[range]
    clock: str

    @property
    def lengths(self) -> list[int]:
        return [len(places) for places in self.places]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def cut(self, x: Tensor) -> Tensor:
        """`[row head ... place]` to `[head clip ... audio]`, 0 behind a shorter clip's end."""
        found = [
            F.pad(x[row][..., places.start : places.stop], (0, self.longest - len(places)))
            for row, places in zip(self.rows, self.places, strict=True)
        ]
        return torch.stack(found, 1)


def clips_of(model: Any, run: Inputs, durations: float | Sequence[float] | None) -> Clips:
    """The clips of a run, as long as `mel_mask` or `durations` (s) tell.

    Raises `LensError` for durations that do not fit, or prompts without a clip.
    """
    if not model.config.prefix:
        lengths = _lengths(model, run, durations)
        return Clips(list(range(len(lengths))), [range(n) for n in lengths], "audio")
    if durations is not None:
        raise LensError("the prompts tell how long their clips are: leave out durations")
    spans = model.audio_positions(run)
    if not spans:
        raise LensError("there is no clip in these prompts, and so nothing to attend to")
    return Clips([one.row for one in spans], [one.positions for one in spans], "pooled")


def forwarded(model: Any, run: Inputs) -> dict[str, Tensor]:
    """What `forward` takes of the inputs: Whisper hears the padding too, and takes no mask."""
    unknown = () if model.config.prefix else ("mel_mask",)
    return {name: value for name, value in run.items() if name not in unknown}


def _lengths(model: Any, run: Inputs, durations: float | Sequence[float] | None) -> list[int]:
    """Encoder positions of the clip in each row."""
    n_rows, most = len(run["tokens"]), model.config.encoder.n_ctx
    if run.get("mel_mask") is not None:
        if durations is not None:
            raise LensError("mel_mask tells how long the clips are: leave out durations")
        found = [timing.encoder_length(max(1, n)) for n in frame_counts(run["mel_mask"])]
    elif durations is None:
        found = [most]
    else:
        given = [durations] if isinstance(durations, int | float) else list(durations)
        found = [timing.hearing(0.0, float(one), "audio").stop for one in given]
    if len(found) == 1:
        found *= n_rows
    if len(found) != n_rows or not all(1 <= n <= most for n in found):
        longest = timing.seconds(most - 1, "audio")[1]
        raise LensError(
            f"{n_rows} rows take as many durations, or one for all, of more than 0 and up to "
            f"{longest:g} s; got {durations if durations is not None else f'{len(found)} masks'}"
        )
    return found


def chosen(asked: int | Sequence[int] | None, n: int, what: str) -> list[int]:
    """Layers or heads by their numbers, in order.

    Raises `LensError` for one that is not there, or for none.
    """
    numbers = [asked] if isinstance(asked, int) else list(range(n) if asked is None else asked)
    wrong = [one for one in numbers if not 0 <= one < n]
    if wrong or not numbers:
        raise LensError(f"the decoder has {what}s 0 to {n - 1}; got {wrong or numbers}")
    return sorted(set(numbers))


# --- Which tokens are the transcript's ------------------------------------------------------------


def transcript_of(
    model: Any, run: Inputs, clips: Clips, n_prompt: int | Sequence[int] | None
) -> tuple[Bool[Tensor, "clip _"], Bool[Tensor, "clip _"]]:
    """Of each clip's row: where there is no padding, and where there is text of the transcript.

    Raises `LensError` where there are not as many prompts as rows.
    """
    tokens = run["tokens"].cpu()
    real = _real(tokens, run.get("attention_mask"))
    begins = _begins(model, tokens, real, clips, n_prompt)
    # Special tokens, time stamps among them, stand behind all others.
    text = tokens[clips.rows] < min(end_tokens(model.generation_config), default=2**62)
    behind = torch.arange(tokens.shape[1]) >= torch.tensor(begins)[:, None]
    kept = real[clips.rows]
    return kept, kept & text & behind


def _real(tokens: Int[Tensor, "batch pos"], mask: TokenMask | None) -> Bool[Tensor, "batch pos"]:
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.cpu().bool()


def _begins(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"],
    clips: Clips,
    n_prompt: int | Sequence[int] | None,
) -> list[int]:
    """Where each clip's transcript begins."""
    if n_prompt is not None:
        given = [n_prompt] * len(tokens) if isinstance(n_prompt, int) else list(n_prompt)
        if len(given) != len(tokens):
            raise LensError(f"{len(tokens)} rows take as many n_prompt, or one; got {len(given)}")
        return [int(real[row].int().argmax()) + given[row] for row in clips.rows]
    rows = [tokens[row].tolist() for row in clips.rows]
    if not model.config.prefix:
        start = model.generation_config.decoder_start_token_id
        return [_behind(row, [start]) for row in rows]
    answer = _opening(model)
    return [
        max(places.stop, _behind(row, answer))
        for row, places in zip(rows, clips.places, strict=True)
    ]


def _opening(model: Any) -> list[int]:
    if model.tokenizer is None:
        return []
    ids: list[int] = model.tokenizer.encode(_ANSWER, add_special_tokens=False)
    return ids


def _behind(row: list[int], mark: list[int]) -> int:
    """The place behind the last time that a mark occurs; 0 where it does not."""
    n = len(mark)
    ends = [i + n for i in range(len(row) - n + 1) if mark and row[i : i + n] == mark]
    return ends[-1] if ends else 0
