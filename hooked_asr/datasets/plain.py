"""Sentences, each said once, in quiet and in noise."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import (
    Asked,
    Item,
    Made,
    Say,
    as_pcm,
    ever_faster,
    one_part,
    recording,
)
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, distinct_sentences, texts
from hooked_asr.nano.noise import NOISES
from hooked_asr.nano.nonspeech import sound
from hooked_asr.sounds.noise import Samples, Talker, add_noise, bundled_talkers

CLEAN = "clean"
_KINDS = (CLEAN, *NOISES, "babble")

Condition = tuple[str, float]


def sentences(
    out: str | os.PathLike[str],
    n: int = 240,
    languages: Sequence[str] = ("en",),
    noises: Sequence[str] = (CLEAN,),
    snrs: Sequence[float] = (10.0,),
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
    """Sentences by several voices, each said once, and written in every noise.

        manifest = datasets.sentences("speech", n=240, noises=("clean", "white", "babble"))

    - `n`: sentences, of all languages together, in turn.
    - `noises`: "clean", "white", "pink", "hum", "clicks", "babble" (of five other clips); each but
      the first at every one of `snrs` (dB below the speech).

    Ids are those of the sentence, with the noise behind: "en-0003", "en-0003-white-10dB". The other
    arguments, columns and errors are those of every builder: see `hooked_asr.datasets`.

    Source: sets of speech by sex, accent and noise, as the encoder's probes are trained on in
    "Beyond Transcription: Mechanistic Interpretability in ASR" (2025).
    """
    recipe = recipe_of("sentences", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    speakers = cast(held_out, sex, accents, voices)
    source = texts(vocabulary, held_out)
    conditions = _conditions(noises, snrs)
    talkers = bundled_talkers()
    drawn = distinct_sentences(source, n, checked_languages(languages), "sentences", seed)
    items = (
        _in_noises(asked, conditions, talkers, seed)
        for asked in _asked(source, drawn, speakers, seed)
    )
    return build(out, recipe, items, speaker, progress)


def _asked(
    source: Texts, drawn: Iterable[tuple[str, str]], speakers: Cast, seed: int
) -> Iterator[Asked]:
    for i, (language, text) in enumerate(drawn):
        name = f"{language}-{i:04}"
        rng = random.Random(f"{seed}/{name}")
        plan = one_part("sentence", text, speakers.draw(rng, language), rng.uniform(0.0, 0.5))
        yield Asked(name, ever_faster(plan), seconds=source.seconds)


def _conditions(noises: Sequence[str], snrs: Sequence[float]) -> list[Condition]:
    wrong = [one for one in noises if one not in _KINDS]
    if wrong or not noises or (not snrs and set(noises) != {CLEAN}):
        raise DatasetError(
            f"noises are {', '.join(_KINDS)}, with an SNR (dB) for those but clean; got "
            f"{list(noises)} and {list(snrs)}"
        )
    asked = [(one, snr) for one in noises for snr in ((0.0,) if one == CLEAN else snrs)]
    return list(dict.fromkeys(asked))


def _in_noises(
    asked: Asked, conditions: Sequence[Condition], talkers: Sequence[Talker], seed: int
) -> Item:
    def make(say: Say) -> Iterator[Made]:
        clean = recording(asked, asked.said(say))
        speech = clean.samples.astype(np.float32) / 2**15
        for kind, snr in conditions:
            yield clean if kind == CLEAN else _noisy(clean, speech, kind, snr, talkers, seed)

    return Item(asked.id, make)


def _noisy(
    clean: Made, speech: Samples, kind: str, snr: float, talkers: Sequence[Talker], seed: int
) -> Made:
    name = f"{clean.id}-{kind}-{snr:g}dB"
    rng = np.random.default_rng([seed, *name.encode()])
    loud = add_noise(speech, sound(kind, len(speech), rng, talkers), snr)
    labels = {**clean.labels, "noise": f"{kind} {snr:g} dB"}
    return replace(clean, id=name, samples=as_pcm(loud.astype(np.float32)), labels=labels)
