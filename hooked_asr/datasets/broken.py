"""Speech that is cut off in a word, or sticks like a record."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import (
    Asked,
    Item,
    Made,
    Pcm,
    Say,
    ever_faster,
    one_part,
    recording,
)
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, distinct_sentences, texts
from hooked_asr.nano.clips import Clip
from hooked_asr.nano.espeak import Interval
from hooked_asr.nano.fragments import Fragment, cut_off, stuck

CUT_OFF, STUCK = "cut off", "stuck"
KINDS = (CUT_OFF, STUCK)

_QUIET = 0.01  # of the loudest sample: what is below at a clip's ends is a pause


def fragments(
    out: str | os.PathLike[str],
    n: int = 60,
    languages: Sequence[str] = ("en",),
    *,
    kinds: Sequence[str] = KINDS,
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
    """Sentences that end in the middle of a word, or whose end comes again and again.

    - `n`: clips, of all languages and kinds together, in turn.
    - `kinds`: "cut off", whose text has the words before; "stuck", in which 0.3 to 0.6 s come 4 to
      8 times, and whose text has the words of that stretch, whole ones or not, as often.

    Its own column is `times`: how often what comes last does. A program that tells no times (`tts`)
    is thought to take as long for every letter: there texts are true but for the word at the cut.
    The other arguments, columns and errors are those of every builder: see `hooked_asr.datasets`.
    """
    recipe = recipe_of("fragments", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    source = texts(vocabulary, held_out)
    voiced = cast(held_out, sex, accents, voices)
    if not kinds or set(kinds) - set(KINDS):
        raise DatasetError(f"kinds are some of {', '.join(KINDS)}; got {list(kinds)}")
    spoken = checked_languages(languages)
    drawn = distinct_sentences(source, n, spoken, "fragments", seed)
    turns = cycle(kind for kind in kinds for _ in spoken)  # each kind in each language
    items = _items(source, zip(drawn, turns, strict=False), voiced, seed)
    return build(out, recipe, items, speaker, progress)


def _items(
    source: Texts, drawn: Iterable[tuple[tuple[str, str], str]], voiced: Cast, seed: int
) -> Iterator[Item]:
    for i, ((language, text), kind) in enumerate(drawn):
        name = f"{language}-{i:04}"
        rng = random.Random(f"{seed}/fragments/{name}")
        plan = one_part("sentence", text, voiced.draw(rng, language), rng.uniform(0.0, 0.5))
        asked = Asked(name, ever_faster(plan), {"kind": kind}, source.seconds)
        yield _item(asked, kind, seed)


def _item(asked: Asked, kind: str, seed: int) -> Item:
    def make(say: Say) -> Iterator[Made]:
        clip = asked.said(say)
        rng = random.Random(f"{seed}/fragments/{asked.id}/{kind}")
        whole = clip if clip.words else replace(clip, words=_guessed(clip))
        left = cut_off(whole, rng) if kind == CUT_OFF else stuck(whole, rng, asked.seconds)
        yield _left_of(recording(asked, clip), left, told=bool(clip.words))

    return Item(asked.id, make)


def _left_of(made: Made, left: Fragment, told: bool) -> Made:
    return replace(
        made,
        samples=left.samples,
        text=left.text,
        labels={**made.labels, "times": left.repeats},
        words=left.times if told else (),
        phones=left.phones,
    )


def _guessed(clip: Clip) -> tuple[Interval, ...]:
    """Words as long as their letters are many."""
    words = [word.strip(".,?¿!¡") for word in clip.text.split()]
    start, end = _loud(clip.samples)
    lasts = np.array([len(word) + 1 for word in words])
    edges = start + (end - start) * np.concatenate([[0.0], np.cumsum(lasts) / lasts.sum()])
    return tuple(
        Interval(word, float(a), float(b))
        for word, a, b in zip(words, edges[:-1], edges[1:], strict=True)
    )


def _loud(samples: Pcm) -> tuple[float, float]:
    """From when to when (s) anything is heard."""
    level = np.abs(samples.astype(np.int32))
    heard = np.flatnonzero(level > _QUIET * level.max(initial=0))
    if not len(heard):
        return 0.0, len(samples) / SAMPLE_RATE
    return float(heard[0] / SAMPLE_RATE), float((heard[-1] + 1) / SAMPLE_RATE)
