"""`hooked-asr sae measure`: how good autoencoders are, for activations and for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr.cli.lens_options import save_all, say
from hooked_asr.cli.lens_tables import plain_table, show_whole
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
from hooked_asr.manifests import read_clips
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.measuring.frontier import frontier
from hooked_asr.sae.measuring.measure import measure_sae
from hooked_asr.sae.measuring.result import SAEMeasures
from hooked_asr.viz.figure import save as save_figure


def measure(
    saes: Annotated[
        list[Path],
        typer.Argument(
            help="Sparse autoencoders: the folder of each.", metavar="SAE...", show_default=False
        ),
    ],
    clips: Annotated[
        Path,
        typer.Argument(
            help="A folder of recordings, or a manifest (CSV or JSONL).",
            metavar="CLIPS",
            show_default=False,
        ),
    ],
    model: Model,
    texts: Annotated[
        str,
        typer.Option(
            help="Whose likelihood: heard, the model's own transcripts; or text, the manifest's."
        ),
    ] = "heard",
    losses: Annotated[
        bool, typer.Option(help="What the model loses with the reconstruction in place.")
    ] = True,
    wer: Annotated[
        bool, typer.Option(help="Transcribe each clip with the reconstruction in place.")
    ] = True,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Recordings at a time, for activations.")
    ] = 8,
    memory: Annotated[
        str | None, typer.Option(help="What features may take, as in '2 GiB'.")
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and figures (HTML, PNG).")
    ] = Path("measures"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Explained variance, active and dead features; loss recovered, KL and word errors.

    Best of recordings that the autoencoder was not trained on. Several autoencoders are also drawn
    beside each other: how much they explain with how few features.
    """
    read = read_clips(clips)
    hooked = load(model, device, dtype)
    loaded = {name: SparseAutoencoder.load(folder, hooked) for name, folder in _names(saes).items()}
    given: dict[str, Any] = {"texts": texts, "losses": losses, "wer": wer, "memory": memory}
    given |= {"language": language, **asked(hooked, prompt=prompt)}
    found = {}
    for name, sae in loaded.items():
        found[name] = measure_sae(
            sae, hooked, read, batch_size=batch_size, progress=progress(), **given
        )
        _put(name, found[name], out)
    if len(found) > 1:
        _put_frontier(found, out)


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Each by its folder's name; by its whole path, where two have the same name."""
    short = [folder.resolve().name for folder in folders]
    return {
        name if short.count(name) == 1 else "-".join(folder.resolve().parts[1:]): folder
        for name, folder in zip(short, folders, strict=True)
    }


def _put(name: str, found: SAEMeasures, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    say(f"{name}: {found.n_features} features at {found.site}, {len(found.clips)} clips")
    table = found.to_pandas()
    show_whole(plain_table(table[table["value"].notna()]))
    save_all(found, out / name)


def _put_frontier(found: Mapping[str, SAEMeasures], out: Path) -> None:
    figure = frontier(found)
    for suffix in (".html", ".png"):
        save_figure(figure, out / f"frontier{suffix}")
    say(f"wrote {out}/frontier.html, .png")
