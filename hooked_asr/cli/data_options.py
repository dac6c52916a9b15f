"""Options that the sub-commands of `hooked-asr data` share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.options import OptionError, progress
from hooked_asr.manifests import read_clips

EXTRA = "Needs espeak-ng (pip install 'hooked_asr[nano]') or --tts."

Out = Annotated[
    Path, typer.Option(help="Folder for recordings and manifest.csv.", show_default=False)
]
Count = Annotated[int, typer.Option("--n", min=1, help="How many, of all languages together.")]
CountOrAll = Annotated[
    int | None, typer.Option("--n", min=1, help="At most so many.", show_default="all")
]
Languages = Annotated[str, typer.Option(help="Languages, as in en,es,de.")]
Seed = Annotated[int, typer.Option(help="Of all random draws.")]
Training = Annotated[
    bool,
    typer.Option(
        "--training",
        help="Voices and sentences of whisper-nano's training, not those kept from it.",
    ),
]
Sex = Annotated[str | None, typer.Option(help="Only female or male voices.", show_default="both")]
Accents = Annotated[
    str | None,
    typer.Option(help="Only these accents, as in american,scottish.", show_default="all"),
]
Vocabulary = Annotated[
    str, typer.Option(help="nano, what whisper-nano knows; or open, many more words.")
]
Tts = Annotated[
    str | None,
    typer.Option(
        help="A command of any text-to-speech program, with {out} and {voice}; the text comes on "
        "stdin, or as {text}.",
        show_default="espeak-ng",
    ),
]
Voices = Annotated[
    str | None,
    typer.Option(help="Its voices: a.onnx:female,de=b.onnx:male", show_default=False),
]
Jobs = Annotated[int, typer.Option(min=1, help="How many texts --tts says at a time.")]


def listed(said: str | None) -> list[str] | None:
    """The items of an option with commas.

    Raises `OptionError` for an empty one.
    """
    if said is None:
        return None
    found = [one.strip() for one in said.split(",")]
    if not all(found):
        raise OptionError(f"a list is as in one,two; got {said!r}")
    return found


def numbers(said: str | None) -> list[float] | None:
    """Numbers with commas between; raises `OptionError` for what are none."""
    try:
        return None if said is None else [float(one) for one in said.split(",")]
    except ValueError:
        raise OptionError(f"numbers are as in 20,10,5; got {said!r}") from None


def speaking(
    languages: str,
    training: bool,
    sex: str | None,
    accents: str | None,
    vocabulary: str,
    tts: str | None,
    voices: str | None,
    jobs: int,
    seed: int,
) -> dict[str, Any]:
    """What the builders of speech take."""
    return {
        "languages": listed(languages),
        "held_out": not training,
        "sex": sex,
        "accents": listed(accents),
        "vocabulary": vocabulary,
        "tts": tts,
        "voices": listed(voices),
        "jobs": jobs,
        "seed": seed,
        "progress": progress(),
    }


def tell(manifest: Path) -> None:
    """Say what was made, kind by kind."""
    clips = read_clips(manifest)
    kinds = Counter(
        f"{one.labels['kind']}"
        if one.labels["noise"] in ("clean", one.labels["kind"])
        else f"{one.labels['kind']} in {one.labels['noise']}"
        for one in clips
    )
    said = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    say(f"{len(clips)} clips ({said}) in {manifest}")
