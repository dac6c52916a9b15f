"""`hooked-asr data`: what makes recognisers err: repetition, switches, fragments, noises."""

from __future__ import annotations

from typing import Annotated

import typer

from hooked_asr.cli.data_options import (
    Accents,
    Count,
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
from hooked_asr.cli.options import progress


def repeated_words(
    out: Out,
    n: Count = 60,
    languages: Languages = "en",
    least: Annotated[int, typer.Option(min=2, help="How often at least.")] = 8,
    most: Annotated[int, typer.Option(min=2, help="How often at most.")] = 14,
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """One word again and again: "No, no, no, no, …"

    hooked-asr data repeated-words --out chants --n 60
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    tell(datasets.repeated_words(out, n, times=(least, most), **how))


def code_switching(
    out: Out,
    n: Count = 60,
    languages: Languages = "en,es,de",
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """A sentence in one language, the next in another.

    hooked-asr data code-switching --out switches --languages en,de
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    tell(datasets.code_switching(out, n, **how))


def fragments(
    out: Out,
    n: Count = 60,
    languages: Languages = "en",
    kinds: Annotated[
        str, typer.Option(help="Ending in a word, or stuck like a record.")
    ] = "cut off,stuck",
    training: Training = False,
    sex: Sex = None,
    accents: Accents = None,
    vocabulary: Vocabulary = "nano",
    tts: Tts = None,
    voices: Voices = None,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """Sentences that end in the middle of a word, or whose end comes again and again.

    hooked-asr data fragments --out fragments --kinds stuck
    """
    from hooked_asr import datasets

    how = speaking(languages, training, sex, accents, vocabulary, tts, voices, jobs, seed)
    tell(datasets.fragments(out, n, kinds=listed(kinds) or [], **how))


def noises(
    out: Out,
    n: Count = 120,
    languages: Annotated[str, typer.Option(help="What they are to be taken for.")] = "en",
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Of hiss,white,pink,hum,clicks,babble,brown,tone,modulated,reversed,silence.",
            show_default="all but silence",
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(help="dBFS, as in -60,-40", show_default="those of whisper-nano's card"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Sounds that are not speech, at several levels.

    hooked-asr data noises --out noises --kinds hiss --levels=-70,-60
    """
    from hooked_asr import datasets

    tell(
        datasets.noises(
            out,
            n,
            listed(languages) or [],
            kinds=listed(kinds),
            levels=numbers(levels),
            seed=seed,
            progress=progress(),
        )
    )
