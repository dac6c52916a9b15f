"""`hooked-asr lens corpus`: what holds over many recordings, language by language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from hooked_asr import lenses
from hooked_asr.cli.lens_options import SUFFIXES, Out, say
from hooked_asr.cli.lens_tables import (
    corpus_tables,
    layer_counts,
    plain_table,
    saturation_table,
    show_whole,
)
from hooked_asr.cli.lens_train import Clips, Stack
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
    progress,
)
from hooked_asr.files import written_aside
from hooked_asr.manifests import read_clips
from hooked_asr.processes import this_process


def corpus(
    clips: Clips,
    model: Model,
    stack: Annotated[
        Stack, typer.Option(help="decoder: the logit lens; encoder: transcripts of its layers.")
    ] = Stack.decoder,
    force: Annotated[
        str | None,
        typer.Option(
            help="decoder: heard, what the model hears; or text, what the manifest says.",
            show_default="heard",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="decoder: candidates to compare.", show_default="5")
    ] = None,
    ahead: Annotated[
        int | None,
        typer.Option(min=0, help="decoder: how many tokens to look for.", show_default="3"),
    ] = None,
    similarity: Annotated[
        bool | None,
        typer.Option(
            help="decoder: how alike candidates sound (pip install 'hooked_asr[phonemes]') and "
            "mean.",
            show_default="similarity",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="encoder: tokens to decode.", show_default="the model's limit"),
    ] = None,
    lens: Annotated[
        Path | None,
        typer.Option("--lens", help="A tuned lens for the stack, as `lens train` writes it."),
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Note clips that cannot be read, and go on.")
    ] = False,
    out: Out = Path("lens-corpus"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Take the logit lens, or the encoder lens, over many recordings.

    Means over clips, by language and layer. Results are kept in --out as they come: run again, it
    goes on where it was. Started by torchrun, processes share the recordings.
    """
    given: dict[Stack, dict[str, Any]] = {
        Stack.decoder: {"force": force, "top_k": top, "ahead": ahead, "similarity": similarity},
        Stack.encoder: {"max_new_tokens": max_new_tokens},
    }
    options = _of_stack(stack, given)
    read = read_clips(clips)
    process = this_process()
    hooked = load(model, process.device(device), dtype)
    # A language also says how words sound, and which clips go together.
    options |= asked(hooked, prompt=prompt) | {"language": language}
    options["tuned"] = None if lens is None else lenses.TunedLens.load(lens, hooked)
    options |= {"skip_errors": skip_errors, "process": process, "progress": progress()}
    folder = out / stack.value
    if stack is Stack.decoder:
        logit = lenses.corpus_lens(hooked, read, out=folder, **options)
        if process.rank == 0:
            _put_logit(logit, folder)
    else:
        encoder = lenses.encoder_corpus(hooked, read, out=folder, **options)
        if process.rank == 0:
            _put_encoder(encoder, folder)


def _of_stack(stack: Stack, given: dict[Stack, dict[str, Any]]) -> dict[str, Any]:
    """The options that were given, which are this stack's."""
    for other, options in given.items():
        wrong = [name for name, value in options.items() if value is not None]
        if other is not stack and wrong:
            option = wrong[0].removesuffix("_k").replace("_", "-")
            raise OptionError(f"--{option} is for --stack {other.value}")
    return {name: value for name, value in given[stack].items() if value is not None}


def _put_logit(found: lenses.CorpusLens, folder: Path) -> None:
    _say_failed(found.failed)
    for suffix in SUFFIXES:
        found.save(folder / f"lens{suffix}")
    found.save_clips(folder / "clips.csv")
    _write(found.saturation(), folder / "saturation.csv")
    _write(found.saturation_counts(), folder / "saturation_counts.csv")
    say(f"{len(found.clips)} clips; wrote {folder}/lens.*, clips.csv, saturation*.csv")
    for table in corpus_tables(found.to_pandas()):
        show_whole(table)
        say("")
    show_whole(saturation_table(found.saturation()))


def _put_encoder(found: lenses.EncoderLens, folder: Path) -> None:
    _say_failed(found.failed)
    for suffix in SUFFIXES:
        found.save(folder / f"lens{suffix}")
    tables = {
        "counts": found.counts(by="language"),
        "languages": found.languages(),
        "phrases": found.phrases(),
    }
    for name, table in tables.items():
        _write(table, folder / f"{name}.csv")
    say(f"{len(found.clips)} clips; wrote {folder}/lens.*, {'.csv, '.join(tables)}.csv")
    show_whole(layer_counts(tables["counts"]))
    for name in ("languages", "phrases"):
        say("")
        show_whole(plain_table(tables[name]))


def _say_failed(failed: dict[str, str]) -> None:
    for name, reason in failed.items():
        say(f"left out: {name}: {reason}")


def _write(table: pd.DataFrame, path: Path) -> None:
    with written_aside(path) as aside:
        table.to_csv(aside, index=False)
