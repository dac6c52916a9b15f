"""A sentence in one language, and the next in another."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Asked, Item, Made, Say, recording
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, texts
from hooked_asr.nano.clips import Part, Plan

_ATTEMPTS = 40  # draws of two sentences, of which one is short enough


def code_switching(
    out: str | os.PathLike[str],
    n: int = 60,
    languages: Sequence[str] = ("en", "es", "de"),
    *,
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
    """A sentence in one language and the next in another, by one speaker where they speak both.

    - `n`: clips, of all ordered pairs of `languages` in turn.

    Columns of its own: `language_2`, and `switch`, when (s) the second sentence begins; `language`
    and `accent` are the first one's. The other arguments, columns and errors are those of every
    builder: see `hooked_asr.datasets`.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), on what makes
    recognisers err.
    """
    recipe = recipe_of("code_switching", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    source = texts(vocabulary, held_out)
    voiced = cast(held_out, sex, accents, voices)
    pairs = list(permutations(checked_languages(languages), 2))
    if not pairs:
        raise DatasetError(f"to switch takes two languages; got {list(languages)}")
    items = []
    for i in range(n):
        first, second = pairs[i % len(pairs)]
        name = f"{first}-{second}-{i:04}"
        plans = partial(_plans, f"{seed}/switching/{name}", source, voiced, first, second)
        items.append(_item(Asked(name, plans, {"language_2": second}, source.seconds)))
    return build(out, recipe, items, speaker, progress)


def _plans(seed: str, source: Texts, voiced: Cast, first: str, second: str) -> Iterator[Plan]:
    rng = random.Random(seed)
    for _ in range(_ATTEMPTS):
        voice = voiced.draw(rng, first)
        said = [(first, voice), (second, voiced.same(rng, voice, second))]
        parts = tuple(
            Part(text, text, one)
            for language, one in said
            for text in [source.sentence(rng, language)]
        )
        yield Plan("code_switch", parts, (rng.uniform(0.0, 0.3), rng.uniform(0.05, 0.3)))


def _item(asked: Asked) -> Item:
    def make(say: Say) -> Iterator[Made]:
        clip = asked.said(say)
        made = recording(asked, clip)
        switch = round(clip.segments[1].start, 3)
        yield replace(made, labels={**made.labels, "switch": switch})

    return Item(asked.id, make)
