"""`hooked-asr data`: speech as it is, in noise, in pairs, and by what words mean."""

from __future__ import annotations

from typing import Annotated

import typer

from hooked_asr.cli.data_options import (
    Accents,
    Count,
    CountOrAll,
    Jobs,
    Languages,
    Out,
    Seed,
    Sex,
    Training,
    Tts,
    Vocabulary,
    Voices,
    listed,
    numbers,
    speaking,
    tell,
)


def sentences(
    out: Out,
    n: Count = 240,
    languages: Languages = "en",
    noises: Annotated[
        str, typer.Option(help="Of clean,white,pink,hum,clicks,babble; each sentence in all.")
    ] = "clean",
    snrs: Annotated[str, typer.Option(help="How far below the speech noises are (dB).")] = "10",
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """Sentences by several voices, each in quiet and in every noise.

    hooked-asr data sentences --out speech --n 240 --noises clean,white,babble --snrs 10
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    how |= {"noises": listed(noises), "snrs": numbers(snrs)}
    tell(datasets.sentences(out, n, **how))


def minimal_pairs(
    out: Out,
    n: CountOrAll = None,
    languages: Languages = "en",
    kinds: Annotated[
        str, typer.Option(help="Said where another word is likely, likely ones, their partners.")
    ] = "confused,likely,partner",
    speakers: Annotated[int, typer.Option(min=1, help="Voices that say each sentence.")] = 2,
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """ "White lice" where "white rice" is likely, and both where they belong.

    hooked-asr data minimal-pairs --out pairs --n 700 --kinds confused --speakers 1
    --vocabulary open --tts "piper -m {voice} -f {out}" --voices a.onnx:female,b.onnx:male
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    asked = listed(kinds) or []
    tell(datasets.minimal_pairs(out, n, kinds=asked, speakers=speakers, **how))


def semantic_categories(
    out: Out,
    categories: Annotated[
        str | None,
        typer.Option(help="Only these, as in fruit,animal.", show_default="all"),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Words of each.", show_default="all")
    ] = None,
    languages: Languages = "en",
    speakers: Annotated[int, typer.Option(min=1, help="Voices that say each word.")] = 4,
    frame: Annotated[str, typer.Option(help="What is said, with {} for the word.")] = "{}.",
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """Words of categories, each by several voices.

    hooked-asr data semantic-categories --out words --vocabulary open --n 20
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    chosen = listed(categories)
    tell(datasets.semantic_categories(out, chosen, n, speakers=speakers, frame=frame, **how))
