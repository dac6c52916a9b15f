"""`hooked-asr sae train`: a dictionary of a site's activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.lens_tables import plain_table, show_whole
from hooked_asr.cli.options import (
    Device,
    Dtype,
    FloatType,
    Language,
    OptionError,
    Prompt,
    asked,
    load,
    progress,
)
from hooked_asr.features import FeatureStore
from hooked_asr.features.disk import BEGUN, INDEX
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.training.architectures import ARCHITECTURES
from hooked_asr.sae.training.train import train_sae


def train(
    clips: Annotated[
        Path,
        typer.Argument(
            help="A folder of recordings or a manifest (CSV or JSONL); or a folder of features of "
            "all frames or tokens, as hooked_asr.features.harvest writes it.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A checkpoint: a folder, a hub id, or whisper-nano."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="The hook to read, as in encoder.2.hook_resid_post.")
    ] = None,
    architecture: Annotated[
        str, typer.Option(help=f"How it keeps features few: {', '.join(ARCHITECTURES)}.")
    ] = "batchtopk",
    width: Annotated[
        str, typer.Option(help="Features: a number, or 8x the width of the site.")
    ] = "8x",
    k: Annotated[
        float | None,
        typer.Option(help="Features that are active in a frame.", show_default="32"),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames to train on, over all epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Frames of a step.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam, at its peak.", show_default=False)
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="What weighs on features (jumprelu, gated, standard)."),
    ] = None,
    memory: Annotated[str, typer.Option(help="Of frames on their way from the disk.")] = "512 MiB",
    buffer: Annotated[str, typer.Option(help="On the disk, of harvested frames.")] = "16 GiB",
    passes: Annotated[
        int | None,
        typer.Option(help="Through what the buffer holds, where it cannot hold all."),
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out clips that cannot be read.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the start, and of all orders.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the autoencoder.")] = Path("sae"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Train a sparse autoencoder on a model's activations; its files are SAELens's.

    Stopped at any moment, it goes on where it was. The table tells how much of the variance it
    explains, how many features are active in a frame, and how many are dead, on frames that it was
    trained on; for others see `sae measure`.
    """
    wished: dict[str, Any] = {"frames": frames, "batch_size": batch_size, "passes": passes}
    wished |= {"learning_rate": learning_rate, "k": k, "sparsity": sparsity}
    source, more = _source(clips, model, device, dtype, language, prompt, skip_errors)
    made = train_sae(
        source,
        site=site,
        out=out,
        architecture=architecture,
        width=width,
        memory=memory,
        buffer=buffer,
        seed=seed,
        device=device,
        progress=progress(),
        **{name: value for name, value in wished.items() if value is not None},
        **more,
    )
    show_whole(plain_table(_summary(made)))
    say(f"wrote {out}")


def _source(
    clips: Path,
    model: str | None,
    device: str,
    dtype: FloatType,
    language: str | None,
    prompt: str | None,
    skip_errors: bool,
) -> tuple[Any, dict[str, Any]]:
    """A store, or a model and what else is to be said of its clips.

    Raises `OptionError` for recordings without a model, or a store with options of a model.
    """
    if any((clips / name).exists() for name in (INDEX, BEGUN)):
        given = {"--model": model, "--language": language, "--prompt": prompt}
        if useless := [name for name, value in given.items() if value is not None]:
            raise OptionError(f"{clips} holds features already: {useless[0]} has no use there")
        return FeatureStore.open(clips), {}
    if model is None:
        raise OptionError(f"which model hears {clips}? Give --model, or a folder of features")
    hooked = load(model, device, dtype)
    asks = asked(hooked, language=language, prompt=prompt)
    skipping = {"skip_errors": True} if skip_errors else {}
    return hooked, {"clips": clips, **asks, **skipping}


def _summary(sae: SparseAutoencoder) -> pd.DataFrame:
    said = sae.sae.cfg.metadata
    row = {
        "site": sae.site,
        "features": sae.n_features,
        "explained variance": said["explained_variance"],
        "L0": said["l0"],
        "dead features": said["num_dead_features"],
        "dead": said["num_dead_features"] / sae.n_features,
    }
    return pd.DataFrame([row])
