"""`hooked-asr transcribe`: what a recogniser hears, also with parts of it switched off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooked_asr import interventions
from hooked_asr.cli.formats import Format, check_format
from hooked_asr.cli.hearing import Hear, Wishes, hearing
from hooked_asr.cli.messages import say_error
from hooked_asr.cli.options import Device, Dtype, FloatType, Language, Model, Prompt, load, progress
from hooked_asr.cli.outputs import Put, output
from hooked_asr.hooks import Hooks
from hooked_asr.monitors import Monitor
from hooked_asr.sound_files import AudioError


def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Recordings, for Whisper of any length.")],
    model: Model,
    language: Language = None,
    task: Annotated[
        str | None,
        typer.Option(help="transcribe, or translate (into English).", show_default="transcribe"),
    ] = None,
    prompt: Prompt = None,
    previous: Annotated[
        str | None,
        typer.Option(help="What was said before the recording, for Whisper to go on from."),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Also tell when each segment is spoken.")
    ] = False,
    words: Annotated[
        bool,
        typer.Option("--words", help="Also tell when each word is spoken; json: how sure it is."),
    ] = False,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            help="0 for the likeliest tokens, or that to draw them at; may be given again: the "
            "next is tried where a window repeats itself or is unlikely.",
            show_default="0",
        ),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Transcripts to follow at temperature 0.", show_default="1"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of what is drawn.", show_default="another each time")
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(help="Set a site to zero, as in decoder.2.cross_attn.5; may be given again."),
    ] = None,
    monitor: Annotated[
        list[Path] | None,
        typer.Option(
            help="A probe (.safetensors, as `hooked-asr probe` writes it) that reads along, and "
            "flags what it is alarmed by; may be given again."
        ),
    ] = None,
    alarm: Annotated[
        float | None,
        typer.Option(
            help="The score from which monitors flag: a probability, or the number told.",
            show_default="0.5",
        ),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option("--format", help="srt and vtt are subtitles; json tells all that is known."),
    ] = Format.text,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a file named by each recording.", show_default="print them"),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Transcribe recordings, one after another.

    One that cannot be read is named, and the others go on; the exit code is then 2.
    """
    hooks = [interventions.zero(site) for site in ablate or []]
    hooked = load(model, device, dtype)
    wishes = Wishes(
        asks={"language": language, "task": task, "prompt": prompt},
        timestamps=timestamps or format_.has_times,
        words=words,
        previous=previous,
        temperatures=temperature or (),
        beams=beams,
        seed=seed,
        monitors=[Monitor.load(path, hooked, alarm) for path in monitor or []],
    )
    check_format(hooked, format_, words, monitored=bool(monitor))
    hear = hearing(hooked, wishes)
    with output(audio, format_, timestamps or words, out) as put:
        failed = [path for path in audio if not _transcribed(path, hear, hooks, put)]
    if failed:
        raise typer.Exit(2)


def _transcribed(path: Path, hear: Hear, hooks: Hooks, put: Put) -> bool:
    """Whether a recording could be read, and so was transcribed."""
    try:
        heard = hear(path, hooks, progress())
    except (AudioError, OSError) as error:
        say_error(error)
        return False
    put(path, heard)
    return True
