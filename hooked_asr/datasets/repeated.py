"""One word, said again and again: what catches a recogniser in a loop."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Asked, Item, Made, Say, one_part, recording
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, texts
from hooked_asr.nano.clips import Plan

_RATE = (240, 320)  # words a minute
_ATTEMPTS = 24  # draws of a word, of which one is short enough


def repeated_words(
    out: str | os.PathLike[str],
    n: int = 60,
    languages: Sequence[str] = ("en",),
    *,
    times: tuple[int, int] = (8, 14),
    held_out: bool = True,
    sex: str | None = None,
    accents: Sequence[str] | None = None,
    vocabulary: str = "nano",
    tts: str | None = None,
    voices: Sequence[str] | None = None,
    jobs: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """A short word, again and again, by quick voices: "No, no, no, no, no, no, no, no."

    - `n`: clips, of all languages together, in turn.
    - `times`: how often at least and at most.

    Its own column is `times`. The other arguments, columns and errors are those of every builder:
    see `hooked_asr.datasets`.

    Source: speech that makes a recogniser repeat itself without end, "Beyond Transcription:
    Mechanistic Interpretability in ASR" (2025), on repetition hallucinations.
    """
    recipe = recipe_of("repeated_words", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    source = texts(vocabulary, held_out)
    voiced = cast(held_out, sex, accents, voices)
    spoken = checked_languages(languages)
    if not 2 <= times[0] <= times[1]:
        raise DatasetError(f"times is from 2 on, the fewest first; got {times}")
    items = []
    for i in range(n):
        language = spoken[i % len(spoken)]
        name = f"{language}-{i:04}"
        plans = partial(_plans, f"{seed}/repeated/{name}", source, voiced, language, times)
        items.append(_item(Asked(name, plans, seconds=source.seconds)))
    return build(out, recipe, items, speaker, progress)


def _plans(
    seed: str, source: Texts, voiced: Cast, language: str, times: tuple[int, int]
) -> Iterator[Plan]:
    rng = random.Random(seed)
    for _ in range(_ATTEMPTS):
        text = source.chant(rng, language, rng.randint(*times))
        quick = replace(voiced.draw(rng, language), rate=rng.randint(*_RATE))
        yield one_part("chant", text, quick, rng.uniform(0.0, 0.5))


def _item(asked: Asked) -> Item:
    def make(say: Say) -> Iterator[Made]:
        made = recording(asked, asked.said(say))
        yield replace(made, labels={**made.labels, "times": made.text.count(",") + 1})

    return Item(asked.id, make)
