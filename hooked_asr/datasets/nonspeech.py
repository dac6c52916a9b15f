"""Sounds that are not speech: what makes a recogniser invent text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Item, Made, Say, as_pcm
from hooked_asr.datasets.synthesis import EspeakSynthesis
from hooked_asr.nano.nonspeech import LEVELS, sound
from hooked_asr.sounds.noise import Talker, bundled_talkers

_TALKERS = 4  # of a babble


def noises(
    out: str | os.PathLike[str],
    n: int = 120,
    languages: Sequence[str] = ("en",),
    *,
    kinds: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    seconds: tuple[float, float] = (1.0, 6.0),
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Sounds that are not speech, at several levels; nothing is to be written of them.

        manifest = datasets.noises("noises", n=60, kinds=("hiss",))

    - `n`: clips, of all kinds and levels in turn.
    - `languages`: what they are to be taken for, in turn.
    - `kinds`: "hiss" (faint white noise, of which whisper-nano invents text), "white", "pink",
      "hum", "clicks", "babble", "brown", "tone", "modulated", "reversed" (speech backwards); all of
      these if None. "silence", of which every load warns, only where it is asked for.
    - `levels`: dBFS (RMS); if None those at which whisper-nano's card tells of each kind.
    - `seconds`: of the shortest and the longest.

    Columns of its own: `level`; `speech` is "no", `kind` and `noise` are the sound's, which is the
    group, too; `sex` and `accent` are empty. Errors are those of every builder: see
    `hooked_asr.datasets`.
    """
    recipe = recipe_of("noises", locals())
    asked = tuple(kinds) if kinds is not None else tuple(one for one in LEVELS if one != "silence")
    wrong = [one for one in asked if one not in LEVELS]
    if wrong or not asked or not 0.1 <= seconds[0] <= seconds[1]:
        raise DatasetError(
            f"kinds are {', '.join(LEVELS)}, of 0.1 s or more; got {list(asked)} of {seconds} s"
        )
    taken_for = cycle(checked_languages(languages))
    talkers = bundled_talkers()
    items = []
    for i, (kind, level) in enumerate(islice(_cases(asked, levels), n)):
        name = f"{kind}-{level:g}dB-{i:04}"
        items.append(_item(name, kind, level, next(taken_for), seconds, talkers, seed))
    return build(out, recipe, items, EspeakSynthesis(seed), progress)


def _cases(kinds: Sequence[str], levels: Sequence[float] | None) -> Iterator[tuple[str, float]]:
    """Kinds in turn; each time a kind comes again, at its next level."""
    at = {kind: cycle(levels or LEVELS[kind]) for kind in kinds}
    for kind in cycle(kinds):
        yield kind, float(next(at[kind]))


def _item(
    name: str,
    kind: str,
    level: float,
    language: str,
    seconds: tuple[float, float],
    talkers: Sequence[Talker],
    seed: int,
) -> Item:
    def make(say: Say) -> Iterator[Made]:
        rng = np.random.default_rng([seed, *name.encode()])
        speech = [talkers[i] for i in rng.permutation(len(talkers))[:_TALKERS]]
        length = int(rng.uniform(*seconds) * SAMPLE_RATE)
        made = sound(kind, length, rng, speech) * np.float32(10 ** (level / 20))
        labels = {"sex": "", "accent": "", "noise": kind, "kind": kind, "speech": "no"}
        samples = as_pcm(made.astype(np.float32))
        yield Made(name, samples, "", language, kind, {**labels, "level": level})

    return Item(name, make)
