"""Features to look at and to listen to: a page for each, and one of all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hooked_asr.files import written_aside
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.pages.feature import feature_page
from hooked_asr.sae.pages.index import index_page
from hooked_asr.sae.pages.logits import favoured, in_decoder_stream
from hooked_asr.sae.pages.sound import Sounds
from hooked_asr.sae.reading.reading import FeatureReading

FOLDER = "features"
_LABELS = 3  # of each kind, on a page


def feature_pages(
    reading: FeatureReading,
    model: Any,
    sae: SparseAutoencoder | None = None,
    *,
    out: str | os.PathLike[str],
    features: Sequence[int] | None = None,
    top: int = 8,
    audio: bool = True,
    progress: bool = True,
) -> Path:
    """Write a page for each feature, and index.html, which lists, sorts and searches them.

        index = feature_pages(reading, model, sae, out="pages")

    A page holds all that it shows, and needs no network: excerpts as spectrograms under the
    activation, with words and phones, each to be played; the labels with their controls; the
    histogram. 8 excerpts of one second take about 300 KiB.

    - `features`: only these; by default all that are active anywhere.
    - `top`: excerpts of each, no more than were read. `audio`: whether they can be played.
    - `sae`: the autoencoder that was read; of a decoder's residual stream, tokens that each
      feature speaks for are told too.

    Gives the path of index.html. A page that is there already is written anew.

    Raises `SAEError` for a feature that was not read, an autoencoder of another site or model, or
    recordings that are not there any more.
    """
    numbers = reading.active if features is None else list(features)
    if not numbers:
        raise SAEError("no feature is active anywhere: there is nothing to show")
    notes = [reading.note(one, _LABELS) for one in numbers]
    speaks = _speaks(reading, model, sae)
    sounds, folder = Sounds(model), Path(out)
    files = [f"{FOLDER}/{note.number:05d}.html" for note in notes]
    shown = tqdm(
        zip(notes, files, strict=True), "pages", len(notes), unit="page", disable=not progress
    )
    for note, file in shown:
        tokens = None
        if sae is not None and speaks:
            tokens = favoured(model, sae.directions[note.number])
        _write(folder / file, feature_page(reading, note, tokens, sounds, top, audio))
    _write(folder / "index.html", index_page(reading, notes, files))
    return folder / "index.html"


def _speaks(reading: FeatureReading, model: Any, sae: SparseAutoencoder | None) -> bool:
    """Whether the features' directions can be told in tokens."""
    if sae is None:
        return False
    if (sae.site, sae.weights) != (reading.site, reading.weights):
        raise SAEError(
            f"the reading is of {reading.site} of {reading.model!r}, and the autoencoder of "
            f"{sae.site} of {sae.model!r}: give the one that was read"
        )
    return in_decoder_stream(model, sae)


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
