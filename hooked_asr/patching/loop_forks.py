"""Where a looping transcript might have ended: its runs, and the choice there, for patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.audio import load_audio
from hooked_asr.errors import HookedASRError
from hooked_asr.generation import end_tokens
from hooked_asr.patching.inputs import reference_sound
from hooked_asr.patching.loops import HeardClip, RepetitionError, most_repeats, over_round
from hooked_asr.patching.metrics import Metric, logit_diff
from hooked_asr.patching.operations import Inputs
from hooked_asr.speech.repetition import MIN_REPEATS

_CLOSING = (".", "?", "!", "。", "？")  # marks by which a text comes to its end


@dataclass(frozen=True, eq=False)
class LoopFork:
    """Two runs on a looping transcript up to where it might have ended.

    - `clean`: on the recording; `reference`: on what is patched in. Both have the same tokens.
    - `goes_on`: the next token of the loop; `ends`: the end of text, or the mark before it.
    - `metric`: the logit of the one less that of the other, at the last position: above 0 it loops.
    - `round`: how often the transcript has said its unit by then.
    """

    name: str
    clean: Inputs
    reference: Inputs
    goes_on: int
    ends: int
    round: int
    said_before: str

    @property
    def metric(self) -> Metric:
        return logit_diff(self.goes_on, self.ends, -1)


@torch.no_grad()
def loop_forks(
    model: Any,
    clips: Sequence[HeardClip],
    *,
    reference: str = "silence",
    min_repeats: int = MIN_REPEATS,
    seed: int = 0,
) -> list[LoopFork]:
    """The fork of each looping clip: to go on with the loop, or to end.

        for fork in loop_forks(model, hear_clips(model, ["one.wav", "other.wav"])):
            sweep(model, clean=fork.clean, reference=fork.reference, metric=fork.metric, …)

    It lies where the loop has been said as often as it truly was, if that is known, and otherwise
    `min_repeats` times: before or behind the mark that follows (see `over_round`), where the model
    comes nearest to ending. Clips that do not loop, or say it no more often than that, are left
    out.

    - `clips`: from `hear_clips`.
    - `reference`: as `repetition` takes it; `seed`: of its noise.

    Raises `RepetitionError` where no clip has a fork; `AudioError` for one longer than a window.
    """
    ends = _ends(model)
    found = [_fork(model, clip, ends, reference, min_repeats, seed) for clip in clips if clip.loop]
    forks = [one for one in found if one is not None]
    if not forks:
        raise RepetitionError(
            f"none of {len(clips)} recordings loops for longer than what is said in it: there is "
            "no place where it should have ended"
        )
    return forks


def _fork(
    model: Any, clip: HeardClip, ends: list[int], reference: str, min_repeats: int, seed: int
) -> LoopFork | None:
    n = max(min_repeats, most_repeats(clip.said or ""))
    places = over_round(model.to_str_tokens(clip.tokens), clip.tokens, n)
    if not places:
        return None
    samples = load_audio(clip.audio)
    prompt = model.prompt(clip.language)
    mel = model.to_mel(samples)
    tokens = torch.tensor([[*prompt, *clip.tokens]], device=model.device)
    logits = model(mel, tokens)[0, len(prompt) - 1 : -1]
    place, end = _nearest_to_ending(logits, clip.tokens, places, ends)
    read = tokens[:, : len(prompt) + place]
    other = model.to_mel(reference_sound(reference, samples, seed))
    return LoopFork(
        name=clip.name,
        clean={"mel": mel, "tokens": read},
        reference={"mel": other, "tokens": read},
        goes_on=clip.tokens[place],
        ends=end,
        round=n,
        said_before=model.text_of(clip.tokens[:place]),
    )


def _nearest_to_ending(
    logits: Float[Tensor, "said d_vocab"], said: list[int], places: list[int], ends: list[int]
) -> tuple[int, int]:
    """The place where the end lies least below what is said, and which end it is."""
    goes_on = torch.tensor([said[place] for place in places], device=logits.device)
    here = logits[places].float()
    gaps = here.gather(1, goes_on[:, None]) - here[:, ends]
    i, j = divmod(int(gaps.argmin()), len(ends))
    return places[i], ends[j]


def _ends(model: Any) -> list[int]:
    """The tokens by which a text ends."""
    marks = [_single(model, mark) for mark in _CLOSING]
    found = [*list(end_tokens(model.generation_config))[:1], *marks]
    return list(dict.fromkeys(token for token in found if token is not None))


def _single(model: Any, mark: str) -> int | None:
    try:
        token: int = model.to_single_token(mark)
    except HookedASRError:  # it has no token of its own
        return None
    return token
