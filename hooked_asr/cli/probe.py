"""`hooked-asr probe`: what a straight line through each layer tells of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hooked_asr.cli.lens_options import say
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
from hooked_asr.cli.tables import new_table, show
from hooked_asr.features import FeatureStore
from hooked_asr.features.disk import BEGUN, INDEX
from hooked_asr.probes import TASKS, LinearProbe, ProbeResult, fit_stored, probe_task
from hooked_asr.probes.scores import Score, score_names
from hooked_asr.viz.figure import save as save_figure


def probe(
    clips: Annotated[
        Path,
        typer.Argument(
            help="A manifest (CSV or JSONL: audio, labels, group) or a folder of features, as "
            "hooked_asr.features.harvest writes it.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A checkpoint: a folder, a hub id, or whisper-nano."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(TASKS)}, or any column of labels.", show_default="the label's"
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="The column that holds what is to be told.", show_default="the task's own"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="all, or some from 0 on, as in 0,2,3.", show_default="all"),
    ] = None,
    worst: Annotated[
        float | None,
        typer.Option(
            help="hallucination: the share of transcripts that count as bad.", show_default="0.25"
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="What table and figure show: accuracy, balanced_accuracy, f1 or auc.",
            show_default="accuracy",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-validation.")] = 10,
    seed: Annotated[int, typer.Option(help="Of folds, shuffled labels and random weights.")] = 0,
    language: Language = None,
    prompt: Prompt = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Note clips that cannot be read, and go on.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for features, scores, report, figure and the best probe.")
    ] = Path("probe"),
    device: Device = "cpu",
    dtype: Dtype = FloatType.float32,
) -> None:
    """Probe every layer for a label: how well it is told of groups that were not fitted to.

    Features are kept in --out as they come: run again, it goes on where it was. The best layer's
    probe can read along while recordings are transcribed (transcribe --monitor).
    """
    fitting: dict[str, Any] = {"folds": folds, "seed": seed, "progress": progress()}
    shown = _shown_score(score)
    if clips.is_dir() and any((clips / name).exists() for name in (INDEX, BEGUN)):
        given = {"model": model, "task": task, "layers": layers, "worst": worst}
        _check_stored(given | {"language": language, "prompt": prompt}, label)
        result = fit_stored(FeatureStore.open(clips), str(label), **fitting)
        _put(result, out, label or "", shown)
        return
    if model is None or (task or label) is None:
        raise OptionError("recordings are probed with --model, and --task or --label")
    name = task or str(label)
    hooked = load(model, device, dtype)
    options: dict[str, Any] = asked(hooked, language=language, prompt=prompt)
    if worst is not None:
        options["worst"] = worst
    found = probe_task(
        name,
        hooked,
        clips,
        out=out,
        label=label,
        layers=_layers(layers),
        skip_errors=skip_errors,
        **fitting,
        **options,
    )
    for clip, reason in found.store.failed.items():
        say(f"left out: {clip}: {reason}")
    say(found.about)
    for called, result in found.results.items():
        _put(result, out, called.replace(" ", "_").replace("/", "_"), shown)


# --- What is asked --------------------------------------------------------------------------------


def _check_stored(given: dict[str, Any], label: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise OptionError(
                f"--{name} is for recordings, and this is a folder of features: leave it out"
            )
    if label is None:
        raise OptionError("a folder of features is probed for a column: name it with --label")


def _layers(said: str | None) -> str | list[int]:
    if said in (None, "all"):
        return "all"
    try:
        return [int(one) for one in str(said).split(",")]
    except ValueError:
        raise OptionError(f"--layers is all, or numbers as in 0,2,3; got {said!r}") from None


def _shown_score(score: str | None) -> str:
    names = score_names("classification")
    if score is not None and score not in names:
        raise OptionError(f"--score is {', '.join(names)}; got {score!r}")
    return score or "accuracy"


# --- What is given back ---------------------------------------------------------------------------


def _put(result: ProbeResult, out: Path, stem: str, score: str) -> None:
    """A table on the terminal; report, numbers, figure and the best probe in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    table = new_table(f"{result.name}: {score}", "probe", "95 % interval", *result.baselines)
    for site in result.sites:
        own = result.scores[site][score]
        beside = [_told(of[site][score]) for of in result.baselines.values()]
        table.add_row(site, _told(own), f"{own.low:.3f} – {own.high:.3f}", *beside)
    show(table)
    best = result.best(score)
    for suffix in (".json", ".csv"):
        result.save(out / f"{stem}{suffix}")
    save_figure(result.plot(score), out / f"{stem}.png")
    result.report(out / f"{stem}.html")
    found: LinearProbe = result.probe(best)
    found.save(out / f"{stem}.safetensors")
    say(f"best: {best}; wrote {out / stem}.html, .json, .csv, .png, .safetensors")


def _told(score: Score) -> str:
    return f"{score.value:.3f}"
