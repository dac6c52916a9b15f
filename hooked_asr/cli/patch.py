"""`hooked-asr patch`: which sites carry the transcript of a recording, or of many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooked_asr import patching
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    Model,
    OptionError,
    Prompt,
    asked,
    load,
)
from hooked_asr.cli.patch_clip import patch_clip
from hooked_asr.cli.patch_pairs import patch_pairs
from hooked_asr.cli.patch_tables import Wanted
from hooked_asr.patching.metric_text import METRIC_HELP
from hooked_asr.patching.references import REFERENCE_HELP
from hooked_asr.processes import this_process


def patch(
    audio: Annotated[
        Path | None,
        typer.Argument(
            help="A recording of up to 30 s; none with --manifest.",
            default_factory=lambda: None,
            show_default=False,
        ),
    ],
    model: Model,
    reference: Annotated[
        str,
        typer.Option(help=f"What is patched in: {REFERENCE_HELP}."),
    ] = "noise",
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="decoder.cross_attn (its heads), decoder (its components), decoder.mlp, "
            "decoder.neurons, …; @each behind it for one position at a time, @0.5s (encoder) for "
            "half a second at a time; may be given again.",
            show_default="the attention that hears the audio",
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help=METRIC_HELP)] = "transcript",
    operation: Annotated[
        str, typer.Option(help="replace by the reference, zero, or mean (over the reference).")
    ] = "replace",
    alpha: Annotated[
        float, typer.Option(help="Share that comes from the reference, 0 to 1, in a replace.")
    ] = 1.0,
    text: Annotated[
        str | None, typer.Option(help="The transcript to force; the model's own if not given.")
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    top: Annotated[int, typer.Option(min=1, help="How many sites to print.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and heatmap (HTML, PNG).")
    ] = Path("patching"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
    memory: Annotated[
        str | None,
        typer.Option(
            help='What a sweep may take beside model and inputs, as in "2 GiB".',
            show_default="1 GiB; on a GPU half of what is free, with --manifest a quarter of all",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Many recordings instead of one: a CSV or JSONL file of audio and, where wanted, "
            "reference, text, metric, language, group, id; seen from its folder."
        ),
    ] = None,
    skip_errors: Annotated[
        bool, typer.Option(help="With --manifest, note pairs that cannot be run, and go on.")
    ] = False,
) -> None:
    """Patch each site in turn from a reference run into the clip's own, and rank what it does.

    Rows say how far each patch moves the metric; `normalized` is 0 where it does nothing and 1
    where it does all that the whole reference does.

    With --manifest, rows are means over its recordings, with the 95 % interval of each. Results are
    kept in --out as they come: run again, it goes on where it was. Started by torchrun, processes
    share the recordings.
    """
    # Before anything slow: a misspelt one should not cost the sweeps of the others.
    wishes = {chosen: patching.parse_sites(chosen) for chosen in sites or []}
    pairs = pairs_of(audio, manifest, text, skip_errors)
    hooked = load(model, this_process().device(device), dtype)
    asks = asked(hooked, language=language, prompt=prompt)
    if not wishes:
        heads = patching.attentions(hooked.config)[-1]
        wishes = {heads: patching.heads(heads)}
    for wish in wishes.values():
        wish.check(hooked.config)
    wanted = Wanted(wishes, reference, metric, operation, alpha, top, out, seed, memory, asks)
    if pairs:
        patch_pairs(hooked, pairs, wanted, skip_errors)
    elif audio is not None:
        patch_clip(hooked, audio, text, wanted)


def pairs_of(
    audio: Path | None, manifest: Path | None, text: str | None, skip_errors: bool
) -> list[patching.Pair]:
    """The manifest's pairs; none where one recording is patched.

    Raises `BadParameter` where nothing is given, `OptionError` where both are, or what is of the
    other.
    """
    if audio is None and manifest is None:
        raise typer.BadParameter("give a recording, or --manifest", param_hint="AUDIO")
    if audio is not None and manifest is not None:
        raise OptionError("give a recording, or --manifest with a list of them: one of the two")
    if manifest is None:
        if skip_errors:
            raise OptionError("--skip-errors is for the pairs of a --manifest")
        return []
    if text is not None:
        raise OptionError("--text is of one recording: give the manifest a column of texts")
    return patching.read_pairs(manifest)
