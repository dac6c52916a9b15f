"""`hooked-asr demo`: everything once, on what comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from hooked_asr.cli.patch import patch
from hooked_asr.cli.tables import new_table, show
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano import bundle

_WORD, _OTHER = "green", "red"
_SITES = ("decoder.cross_attn", "decoder.attn", "encoder.attn")


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and heatmaps (HTML, PNG).")
    ] = Path("demo"),
) -> None:
    """Transcribe the bundled clips with the bundled model, then find the heads that matter.

    Offline, in seconds: what is said and what is heard; then each attention head of a clean clip's
    run is patched from the same clip with others talking over it, and ranked by what that does to
    one of its words.
    """
    console = Console()
    model = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    table = new_table("said", "heard", "language", "clip")
    for clip in bundle.clips():
        mel = model.to_mel(clip.path)
        (language,) = model.detect_language(mel)
        (heard,) = model.transcribe(mel, language)
        table.add_row(clip.text or "–", heard or "–", language, clip.name)
    show(table)
    clean, babble = bundle.clip("english").path, bundle.clip("english_babble").path
    console.print(f"\nWhich heads hear {_WORD!r}? Each is patched in turn from english_babble:")
    metric = f"logit_diff:{_WORD}/{_OTHER}"
    patch(clean, "whisper-nano", str(babble), list(_SITES), metric, language="en", out=out)
