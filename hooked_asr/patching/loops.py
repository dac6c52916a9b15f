"""Recordings on which a recogniser loops: what it repeats, and how often."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hooked_asr.errors import HookedASRError
from hooked_asr.generation import Transcript, end_tokens
from hooked_asr.speech import find_loops
from hooked_asr.speech.repetition import MIN_REPEATS


class RepetitionError(HookedASRError):
    """Nothing repeats itself, or not in a way that can be studied."""


@dataclass(frozen=True)
class RepeatedText:
    """A text said `count` times in a row."""

    unit: str
    count: int


@dataclass(frozen=True, eq=False)
class HeardClip:
    """What is heard in a recording that nothing was done to, and its longest loop, if there is one.

    `audio`: as the model takes it; `said`: what is truly said, where that is known.
    """

    name: str
    audio: Any
    text: str
    language: str
    tokens: list[int]
    loop: RepeatedText | None
    said: str | None = None


def hear_clips(
    model: Any,
    audio: Sequence[Any],
    *,
    said: Sequence[str | None] | None = None,
    language: str | None = None,
    min_repeats: int = MIN_REPEATS,
    max_new_tokens: int | None = None,
    progress: bool = False,
) -> list[HeardClip]:
    """Transcribe recordings as they are, and find the loops in what is heard.

    - `audio`: paths, or arrays of samples at 16 kHz; `said`: what is truly said in each.
    - `min_repeats`: how often at least a loop says the same. People repeat themselves too: where
      it is known what was said, a loop says it more often than they do.

    Raises `RepetitionError` for as many texts said as there are no recordings, or a model that does
    not decode under many interventions at once; `AudioError`.
    """
    texts = [None] * len(audio) if said is None else list(said)
    if len(texts) != len(audio):
        raise RepetitionError(
            f"{len(audio)} recordings take as many texts; got {len(texts)}: give what is said in "
            "each, in their order"
        )
    check_decodes_rows(model)
    bar = tqdm(audio, desc="transcribe", unit="clip", disable=not progress, leave=False)
    heard = []
    for i, (clip, text) in enumerate(zip(bar, texts, strict=True)):
        transcript = model.generate(clip, language=language, max_new_tokens=max_new_tokens)[0]
        heard.append(
            HeardClip(
                name=_name(clip, i),
                audio=clip,
                text=transcript.text,
                language=transcript.language,
                tokens=transcript.tokens,
                loop=longest_loop(model, transcript, min_repeats, text),
                said=text,
            )
        )
    return heard


def longest_loop(
    model: Any, transcript: Transcript, min_repeats: int, said: str | None = None
) -> RepeatedText | None:
    """The loop that takes most of a transcript: of its words, or else of its tokens.

    Case and marks do not count among words. Tokens (without time stamps) also tell the loops of
    languages that do not part their words, and those of pieces of one.
    """
    least = max(min_repeats, _most_repeats(said or "") + 1)
    if loops := find_loops(_words(transcript.text), least):
        longest = max(loops, key=len)
        return RepeatedText(" ".join(map(str, longest.unit)), longest.count)
    end = min(end_tokens(model.generation_config), default=model.config.d_vocab)
    spoken = [token for token in transcript.tokens if token < end]
    if loops := find_loops(spoken, least):
        longest = max(loops, key=len)
        unit: Any = longest.unit
        return RepeatedText(model.text_of(unit), longest.count)
    return None


def _most_repeats(text: str) -> int:
    """The most times in a row that a text says the same."""
    return max((loop.count for loop in find_loops(_words(text), 2)), default=1)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def check_decodes_rows(model: Any) -> None:
    """Raises `RepetitionError` for a model that cannot decode many interventions together."""
    if not hasattr(model, "generate_rows"):
        raise RepetitionError(
            f"{type(model).__name__} does not decode under many interventions at once "
            "(generate_rows): give a Whisper"
        )


def _name(clip: Any, i: int) -> str:
    return Path(clip).name if isinstance(clip, str | os.PathLike) else f"recording {i}"
