"""`hooked-asr lens logit`, `tuned` and `encoder`: what each layer says of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr import lenses
from hooked_asr.cli.lens_options import (
    OUT,
    Ahead,
    At,
    Audio,
    Out,
    Text,
    Top,
    run_of,
    save_all,
    say,
)
from hooked_asr.cli.lens_tables import layer_counts, layer_transcripts, show_whole
from hooked_asr.cli.lens_tokens import show_tokens
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    Prompt,
    asked,
    load,
    progress,
)
from hooked_asr.lenses.encoder_inputs import texts_of
from hooked_asr.speech.repetition import MIN_REPEATS

LensFile = Annotated[
    Path, typer.Option("--lens", help="A tuned lens, as `lens train` writes it (.safetensors).")
]


def logit(
    audio: Audio,
    model: Model,
    text: Text = None,
    language: Language = None,
    prompt: Prompt = None,
    at: At = None,
    top: Top = 5,
    ahead: Ahead = 1,
    out: Out = OUT,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Read each decoder layer's stream as if it were the last: the logit lens.

    A table of layers and positions: the likeliest token of each, coloured by its probability. A
    position stands under the token that it has read, and is to say the next one. The last row is
    the layer from which on it says what the model ends with.
    """
    hooked = load(model, device, dtype)
    run = run_of(hooked, audio, text, language, prompt)
    found = lenses.logit_lens(hooked, run.inputs, **_options(run, at, top, ahead))
    show_tokens(found)
    save_all(found, out / f"{audio.stem}-logit")


def tuned(
    audio: Audio,
    model: Model,
    lens: LensFile,
    text: Text = None,
    language: Language = None,
    prompt: Prompt = None,
    at: At = None,
    top: Top = 5,
    ahead: Ahead = 1,
    out: Out = OUT,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Read each decoder layer's stream through a lens that was trained for the model.

    As `lens logit`, but that a learned map carries each stream to where the last layer ends.
    """
    hooked = load(model, device, dtype)
    own = lenses.TunedLens.load(lens, hooked)
    own.check_fits(hooked, "decoder")
    run = run_of(hooked, audio, text, language, prompt)
    found = lenses.tuned_lens(hooked, run.inputs, own, **_options(run, at, top, ahead))
    show_tokens(found)
    save_all(found, out / f"{audio.stem}-tuned")


def encoder(
    audio: Annotated[list[Path], typer.Argument(help="Recordings of up to 30 s.")],
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="What is truly said, for error rates; once for each recording.",
            show_default="against what the last layer gives",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer's number, or embed for what enters layer 0; may be given again.",
            show_default="all; the last is always among them",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Language spoken; each for the one that each layer tells.",
            show_default="the one that the whole model tells",
        ),
    ] = None,
    prompt: Prompt = None,
    min_repeats: Annotated[
        int, typer.Option(min=2, help="How often at least a loop says the same in a row.")
    ] = MIN_REPEATS,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens to decode: fewer are faster.", show_default="the model's own limit"
        ),
    ] = None,
    lens: Annotated[
        Path | None,
        typer.Option("--lens", help="A tuned lens for the encoder, as `lens train` writes it."),
    ] = None,
    out: Out = OUT,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Decode whole transcripts from where each encoder layer has got to: the encoder lens.

    A row for each layer: what is heard there, how far that is from what is said, what it repeats.
    """
    said = texts_of(text or None, len(audio))  # a wrong count should not cost the loading
    hooked = load(model, device, dtype)
    asks: dict[str, Any] = asked(hooked, language=language, prompt=prompt)
    own = None if lens is None else lenses.TunedLens.load(lens, hooked)
    found = lenses.encoder_lens(
        hooked,
        list(audio),
        layers=None if not layer else [int(one) if one.isdigit() else one for one in layer],
        said=said,
        min_repeats=min_repeats,
        max_new_tokens=max_new_tokens,
        tuned=own,
        progress=progress(),
        **asks,
    )
    for clip in found.clips:
        say(f"{clip.name}: {clip.reference} ({clip.against})")
        show_whole(layer_transcripts(clip))
        say("")
    if len(found.clips) > 1:
        show_whole(layer_counts(found.counts()))
    save_all(found, out / (f"{audio[0].stem}-encoder" if len(audio) == 1 else "encoder"))


def _options(run: lenses.ForcedRun, at: list[str] | None, top: int, ahead: int) -> dict[str, Any]:
    return {
        "at": at or "resid_post",
        "top_k": top,
        "ahead": ahead,
        "pos_slice": slice(run.n_prompt - 1, None),
        "progress": progress(),
    }
