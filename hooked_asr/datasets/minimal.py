"""Minimal pairs: a word where the sentence asks for another that sounds alike."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Asked, ever_faster, one_part, spoken_item
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, texts
from hooked_asr.nano.pairs import MinimalPair
from hooked_asr.nano.phrases import capitalised

CONFUSED, LIKELY, PARTNER = "confused", "likely", "partner"
KINDS = (CONFUSED, LIKELY, PARTNER)


def minimal_pairs(
    out: str | os.PathLike[str],
    n: int | None = None,
    languages: Sequence[str] = ("en",),
    *,
    kinds: Sequence[str] = KINDS,
    speakers: int = 2,
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
    """Sentences that ask for a word, said with it and with one that sounds alike.

        manifest = datasets.minimal_pairs("pairs", languages=("en", "es", "de"))

    - `n`: clips at most, or None for all; spread over the pairs.
    - `kinds`: "confused" says `partner` of a pair where `word` is likely ("We eat white lice every
      day."), "likely" says `word` there; "partner" says `partner` where it belongs. The confused
      and the likely clip of a sentence are by one voice at one pace: each can be patched into the
      other.
    - `speakers`: how many voices say each sentence.

    In the open vocabulary each pair is there both ways, either word being the likely one of three
    sentences; so there are no "partner" clips: they are the likely ones of the pair turned round.

    Columns of its own: `pair` ("rice/lice"), `word` (the one said), `neighbour` (the other one),
    `frame` (which sentence of the pair's, of those that ask for the same word). The other
    arguments, columns and errors are those of every builder: see `hooked_asr.datasets`.

    Source: the set of sentences with an unlikely word in "Beyond Transcription: Mechanistic
    Interpretability in ASR" (2025), where 700 were made; `vocabulary="open"` has more than that.
    """
    recipe = recipe_of("minimal_pairs", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    source = texts(vocabulary, held_out)
    voiced = cast(held_out, sex, accents, voices)
    if not kinds or set(kinds) - set(KINDS) or speakers < 1:
        raise DatasetError(
            f"kinds are some of {', '.join(KINDS)}, by one voice at least; got {list(kinds)} by "
            f"{speakers}"
        )
    streams = [
        [*_asked(source, language, voiced, speakers, kinds, seed)]
        for language in checked_languages(languages)
    ]
    items = [spoken_item(one) for one in _in_turn(streams)][:n]
    return build(out, recipe, items, speaker, progress)


def _asked(
    source: Texts, language: str, voiced: Cast, speakers: int, kinds: Sequence[str], seed: int
) -> Iterator[Asked]:
    """Every pair's first sentence, then every pair's second, …; then all by the next voice."""
    pairs = list(source.pairs(language))
    random.Random(f"{seed}/pairs/{language}").shuffle(pairs)
    n_frames = max(len(one) for pair in pairs for one in (pair.frames, pair.partner_frames))
    for turn in range(speakers):
        for k in range(n_frames):
            for pair in pairs:
                yield from _of_frame(source, pair, k, voiced, turn, kinds, seed)


def _of_frame(
    source: Texts,
    pair: MinimalPair,
    k: int,
    voiced: Cast,
    turn: int,
    kinds: Sequence[str],
    seed: int,
) -> Iterator[Asked]:
    cases = [
        (CONFUSED, pair.frames, pair.partner, pair.word),
        (LIKELY, pair.frames, pair.word, pair.partner),
        (PARTNER, pair.partner_frames, pair.partner, pair.word),
    ]
    for kind, frames, word, neighbour in cases:
        if kind not in kinds or k >= len(frames):
            continue
        name = f"{pair.language}-{pair.word}-{pair.partner}"
        # By what the sentence asks for, so that both ways to say it are by one voice.
        rng = random.Random(f"{seed}/{name}/{frames[k]}")
        voice = voiced.several(rng, pair.language, turn + 1)[turn]
        plan = one_part(kind, capitalised(frames[k].format(word)), voice, rng.uniform(0.0, 0.5))
        labels: dict[str, str | int | float] = {
            "pair": f"{pair.word}/{pair.partner}",
            "word": word,
            "neighbour": neighbour,
            "frame": k,
        }
        identity = f"{name}-{kind}-{k}-{turn}"
        yield Asked(identity, ever_faster(plan), labels, source.seconds)


def _in_turn(streams: Sequence[Sequence[Asked]]) -> list[Asked]:
    """One of each in turn, as long as they last."""
    longest = max(map(len, streams))
    return [one[i] for i in range(longest) for one in streams if i < len(one)]
