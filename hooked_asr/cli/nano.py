"""`hooked-asr nano`: rebuild the bundled model organism from nothing, and measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from hooked_asr.cli.options import Device, check_device, progress
from hooked_asr.files import written_aside
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.record import TrainingRecord
from hooked_asr.weights.checkpoint import Checkpoint

nano = typer.Typer(
    help="Rebuild whisper-nano from nothing, and measure it. Needs the extra: "
    "pip install 'hooked_asr[nano]'.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Folder = Annotated[Path, typer.Option(help="Folder of corpus, training and result.")]


@nano.command()
def corpus(
    folder: Folder = Path("whisper-nano"),
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = Recipe.seed,
    shards: Annotated[int, typer.Option(min=1, help="Shards of 1,000 clips.")] = Recipe.shards,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores.")] = None,
) -> None:
    """Speak the training corpus with espeak-ng: 40,000 clips, 3.5 GB, a few minutes.

    Goes on where it was stopped.
    """
    from hooked_asr.nano.corpus import build_corpus

    recipe = Recipe(seed=seed, shards=shards)
    made = build_corpus(folder / "corpus", recipe, workers, progress())
    hours = sum(made.seconds()) / 3600
    Console().print(f"{len(made):,} clips, {hours:.1f} hours, in {folder / 'corpus'}")


@nano.command()
def train(
    folder: Folder = Path("whisper-nano"),
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; the next call goes on.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Train on the corpus: about an hour on 2 cores. Goes on where it was stopped.

    Writes an ordinary Hugging Face checkpoint in float16 to the folder's `checkpoint`.
    """
    from hooked_asr.nano.corpus import Corpus
    from hooked_asr.nano.training import train as run_training

    check_device(device)
    spoken = Corpus(folder / "corpus")
    model = run_training(
        spoken,
        folder / "training",
        device=device,
        progress=progress(),
        stop_after=stop_after,
    )
    model.save_pretrained(folder / "checkpoint", torch.float16)
    TrainingRecord.load(folder / "training").save(folder / "checkpoint")
    Console().print(f"wrote {folder / 'checkpoint'}")


@nano.command()
def clips(
    out: Annotated[Path, typer.Option(help="Folder for the clips.")] = Path("whisper-nano/audio"),
) -> None:
    """Speak the clips that come with the package anew, with the times of their words and phones."""
    from hooked_asr.nano.bundle import make_clips

    make_clips(out)
    Console().print(f"wrote {out}")


@nano.command()
def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="whisper-nano, or a folder that train wrote.")
    ] = "whisper-nano",
    out: Annotated[Path, typer.Option(help="Folder for the card.")] = Path("whisper-nano"),
    n_clips: Annotated[int, typer.Option("--clips", min=2, help="Of each language.")] = 200,
    device: Device = "cpu",
) -> None:
    """Measure it: word errors, languages, minimal pairs, invented text, loops, probes by layer.

    Writes a card (`CARD.md` with figures, and its numbers as `CARD.json`).
    """
    from hooked_asr.nano.card import write_card
    from hooked_asr.nano.evaluation import evaluate as measure

    check_device(device)
    hooked = HookedWhisper.from_pretrained(model, device=device, dtype=torch.float32)
    record = TrainingRecord.load(Checkpoint(model).location)
    found = measure(hooked, clips_per_language=n_clips, progress=progress())
    with written_aside(out / "CARD.json") as aside:
        aside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(out / "CARD.md", found, record)
    Console().print(f"wrote {out / 'CARD.md'}")
