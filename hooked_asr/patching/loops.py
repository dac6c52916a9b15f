"""Recordings on which a recogniser loops: what it repeats, and how often."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hooked_asr.errors import HookedASRError
from hooked_asr.generation import Generated, end_tokens
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip
from hooked_asr.speech import find_loops
from hooked_asr.speech.repetition import MIN_REPEATS
from hooked_asr.weights.fingerprint import computed_with


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
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[HeardClip]:
    """Transcribe recordings as they are, and find the loops in what is heard.

        heard = hear_clips(model, read_clips("manifest.csv"), out="heard")

    - `audio`: paths, arrays of samples at 16 kHz, or `Clip`s, which say their own name and text.
    - `said`: what is truly said in each, where it is no `Clip` that says so.
    - `min_repeats`: how often at least a loop says the same. People repeat themselves too: where
      it is known what was said, a loop says it more often than they do.
    - `out`: a folder where results are kept as they come; run again, it goes on where it was.

    Raises `RepetitionError` for as many texts said as there are no recordings, or a model that does
    not decode under many interventions at once; `AudioError`; `RecordsError` for an `out` that
    holds other work.
    """
    texts = [None] * len(audio) if said is None else list(said)
    if len(texts) != len(audio):
        raise RepetitionError(
            f"{len(audio)} recordings take as many texts; got {len(texts)}: give what is said in "
            "each, in their order"
        )
    check_decodes_rows(model)
    unheard = {
        _key(i, one): _Unheard.of(one, i, text)
        for i, (one, text) in enumerate(zip(audio, texts, strict=True))
    }
    asked = {"language": language, "min_repeats": min_repeats, "max_new_tokens": max_new_tokens}

    def hear(key: str) -> dict[str, Any]:
        one = unheard[key]
        (heard,) = model.generate(one.audio, language=language, max_new_tokens=max_new_tokens)
        loop = longest_loop(model, heard, min_repeats, one.said)
        return {
            **{name: getattr(heard, name) for name in ("text", "language", "tokens")},
            "loop": None if loop is None else asdict(loop),
        }

    done = work_through(
        list(unheard),
        hear,
        folder=out,
        asked=None if out is None else asked_of(model, "hear_clips", unheard.values(), asked),
        progress=progress,
        name="transcribe",
        unit="clip",
    )
    return [unheard[key].heard(record) for key, record in done.results.items()]


@dataclass(frozen=True, eq=False)
class _Unheard:
    """A recording before it is transcribed."""

    name: str
    audio: Any
    said: str | None

    @classmethod
    def of(cls, audio: Any, i: int, said: str | None) -> _Unheard:
        if isinstance(audio, Clip):
            return cls(audio.id, audio.audio_path, audio.text if said is None else said)
        return cls(_name(audio, i), audio, said)

    def heard(self, record: Mapping[str, Any]) -> HeardClip:
        loop = record["loop"] and RepeatedText(**record["loop"])
        return HeardClip(**{**record, "loop": loop}, **vars(self))


def _key(i: int, audio: Any) -> str:
    """Names may come twice, as those of files in several folders do."""
    return f"{i:05} {audio.id if isinstance(audio, Clip) else _name(audio, i)}"


def asked_of(
    model: Any, work: str, clips: Iterable[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """All that numbers depend on, of clips that have a name, audio and what is said."""
    made = hashlib.sha256()
    for clip in clips:
        made.update(json.dumps([clip.name, clip.said, getattr(clip, "tokens", None)]).encode())
        made.update(_bytes(clip.audio))
    return {"work": work, **computed_with(model), "clips (hash)": made.hexdigest(), **options}


def _bytes(audio: Any) -> bytes:
    """What tells one sound from another."""
    if isinstance(audio, str | os.PathLike):
        return Path(audio).read_bytes()
    return np.asarray(audio).tobytes()


def longest_loop(
    model: Any, transcript: Generated, min_repeats: int, said: str | None = None
) -> RepeatedText | None:
    """The loop that takes most of a transcript: of its words, or else of its tokens.

    Case and marks do not count among words. Tokens (without time stamps) also tell the loops of
    languages that do not part their words, and those of pieces of one.
    """
    least = max(min_repeats, most_repeats(said or "") + 1)
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


def over_round(texts: Sequence[str], tokens: Sequence[int], n: int) -> list[int]:
    """How many tokens may have been said where a transcript's longest loop has come `n` times.

    Of words that is behind the round's last one, before or behind the marks that follow it; where
    no words repeat themselves, any place in the round behind. Empty where nothing comes more often.

    - `texts`: of each token.

    >>> over_round([" No", ",", " no", ",", " no", "."], [1, 3, 2, 3, 2, 4], 2)
    [3, 4]
    """
    words = _words("".join(texts))
    if loop := max(find_loops(words, max(2, n + 1)), key=len, default=None):
        before = words[: loop.start + n * len(loop.unit)]
        starts = range(1, len(texts))
        return [place for place in starts if _words("".join(texts[:place])) == before]
    loop = max(find_loops(tokens, max(2, n + 1)), key=len, default=None)
    if loop is None:
        return []
    start = loop.start + n * len(loop.unit)
    return list(range(start, min(start + len(loop.unit), loop.end)))


def most_repeats(text: str) -> int:
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
