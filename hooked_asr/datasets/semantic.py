"""Words by what they mean, each said by several voices."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.cast import Cast, cast, checked_languages
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Asked, ever_faster, one_part, spoken_item
from hooked_asr.datasets.synthesis import synthesis
from hooked_asr.datasets.texts import Texts, texts
from hooked_asr.nano.phrases import capitalised

Categories = Mapping[str, Sequence[str]]


def semantic_categories(
    out: str | os.PathLike[str],
    categories: Sequence[str] | Categories | None = None,
    n: int | None = None,
    languages: Sequence[str] = ("en",),
    *,
    speakers: int = 4,
    frame: str = "{}.",
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
    """Words of categories (fruit, animals, …), each word by several voices.

        manifest = datasets.semantic_categories("words", ["fruit", "animal"], n=8)

    - `categories`: names of those of the vocabulary, all if None; or words of your own by category.
    - `n`: words of each category at most, in an order drawn by `seed`; None for all.
    - `speakers`: how many voices say each word. `frame`: what is said, `{}` being the word.

    Columns of its own: `category`, `word`. A word is in one category only. The group is the
    speaker; whether a probe knows the category of words that it never heard is asked with clips
    grouped by `word`. Of single words, which were rare in its training, whisper-nano writes no more
    than a third; what it makes of them inside is another matter. The other arguments, columns and
    errors are those of every builder: see `hooked_asr.datasets`.

    Source: the semantic categories of "Beyond Transcription: Mechanistic Interpretability in ASR"
    (2025).
    """
    recipe = recipe_of("semantic_categories", locals())
    speaker = synthesis(tts, voices, jobs, seed)
    source = texts(vocabulary, held_out)
    voiced = cast(held_out, sex, accents, voices)
    if speakers < 1 or "{}" not in frame or (n is not None and n < 1):
        raise DatasetError(
            f"each word is said by one voice at least, in a frame with {{}}, and n is 1 or more; "
            f"got speakers={speakers}, frame={frame!r}, n={n}"
        )
    items = [
        spoken_item(asked)
        for language in checked_languages(languages)
        for category, words in _chosen(source, categories, language, n, seed).items()
        for asked in _asked(source, language, category, words, voiced, speakers, frame, seed)
    ]
    return build(out, recipe, items, speaker, progress)


def _chosen(
    source: Texts,
    asked: Sequence[str] | Categories | None,
    language: str,
    n: int | None,
    seed: int,
) -> dict[str, list[str]]:
    known = asked if isinstance(asked, Mapping) else source.categories(language)
    wrong = [one for one in asked or () if one not in known]
    if wrong or not known:
        raise DatasetError(
            f"no categories {wrong}; there are {', '.join(known)}, or give words of your own: "
            "{'tool': ['hammer', …]}"
        )
    chosen = {}
    seen: set[str] = set()
    for category in known if asked is None else asked:
        words = [word for word in dict.fromkeys(known[category]) if word.lower() not in seen]
        random.Random(f"{seed}/{language}/{category}").shuffle(words)
        chosen[category] = words[:n]
        seen |= {word.lower() for word in words}
    return chosen


def _asked(
    source: Texts,
    language: str,
    category: str,
    words: Sequence[str],
    voiced: Cast,
    speakers: int,
    frame: str,
    seed: int,
) -> Iterator[Asked]:
    for word in words:
        rng = random.Random(f"{seed}/{language}/{category}/{word}")
        for k, voice in enumerate(voiced.several(rng, language, speakers)):
            text = capitalised(frame.replace("{}", word))
            plan = one_part("word", text, voice, rng.uniform(0.0, 0.5))
            name = f"{language}-{category}-{word.replace(' ', '_')}-{k}"
            labels = {"category": category, "word": word}
            yield Asked(name, ever_faster(plan), labels, source.seconds)
