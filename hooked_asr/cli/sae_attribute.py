"""`hooked-asr sae attribute`: which features carry a token, or an error, of one recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr.cli.lens_options import save_all, say
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
from hooked_asr.cli.tables import new_table, show
from hooked_asr.patching.inputs import patching_inputs
from hooked_asr.patching.metric_text import METRIC_HELP
from hooked_asr.patching.references import REFERENCE_HELP
from hooked_asr.patching.text_metrics import TextMetric
from hooked_asr.sae.attribution.attribute import attribute_features
from hooked_asr.sae.attribution.result import FeatureAttribution
from hooked_asr.sae.autoencoder import SparseAutoencoder


def attribute(
    sae: Annotated[
        Path, typer.Argument(help="A sparse autoencoder, a folder.", show_default=False)
    ],
    audio: Annotated[Path, typer.Argument(help="A recording of up to 30 s.", show_default=False)],
    model: Model,
    word: Annotated[
        str | None,
        typer.Option(help="Which word's features: short for --metric log_prob:WORD."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help=METRIC_HELP, show_default="transcript")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help=f"Features become what they are there: {REFERENCE_HELP}.",
            show_default="they are taken out",
        ),
    ] = None,
    integrated: Annotated[
        bool, typer.Option("--integrated", help="Mean gradients on the way, not one alone.")
    ] = False,
    text: Annotated[
        str | None, typer.Option(help="The transcript to force; the model's own if not given.")
    ] = None,
    language: Language = None,
    prompt: Prompt = None,
    top: Annotated[int, typer.Option(min=1, help="Features to print, and to change alone.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of a reference's noise.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for numbers (JSON, CSV) and figures (HTML, PNG).")
    ] = Path("attribution"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Estimate from gradients what taking out each feature would change, and check the greatest.

    Effects are summed over positions; the CSV has them one by one. What the autoencoder leaves out
    of the activation stands below.
    """
    if word is not None and metric is not None:
        raise OptionError("--word is a --metric: give one of the two")
    hooked = load(model, device, dtype)
    asks: dict[str, Any] = asked(hooked, language=language, prompt=prompt)
    own = SparseAutoencoder.load(sae, hooked)
    wanted = metric or ("transcript" if word is None else f"log_prob:{word}")
    inputs = patching_inputs(hooked, audio, reference or "silence", wanted, text, seed, **asks)
    if isinstance(inputs.metric, TextMetric):
        raise OptionError(f"{wanted} has no gradient: attribution takes the other metrics")
    say(f"text: {inputs.text}")
    say(f"metric: {inputs.metric.name}")
    found = attribute_features(
        own,
        hooked,
        inputs.clean,
        inputs.metric,
        method="integrated" if integrated else "plain",
        against=None if reference is None else inputs.reference,
        top_exact=top,
        progress=progress(),
    )
    _show(found, top)
    save_all(found, out / f"{audio.stem}-features")


def _show(found: FeatureAttribution, top: int) -> None:
    table = new_table("feature", "estimate", "alone", "positions", "most at")
    for row in found.by_feature().head(top).itertuples():
        table.add_row(
            str(row.feature),
            f"{row.effect:+.4f}",
            f"{row.exact:+.4f}",
            str(row.positions),
            found.place(int(row.peak)),
        )
    table.add_row("left out (error)", f"{found.error:+.4f}", "", "", "")
    show(table)
    say(
        f"clean {found.clean:.4f}; all together {found.total:+.4f}; estimates and features alone: "
        f"Pearson {found.agreement.pearson:.3f}"
    )
