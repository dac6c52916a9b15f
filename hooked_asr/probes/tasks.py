"""Questions that are often asked of a recogniser's activations, each by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hooked_asr.features import FeatureStore, harvest
from hooked_asr.manifests import Clip, Clips, read_clips
from hooked_asr.probes.confidence import confidence_features
from hooked_asr.probes.controls import log_mel_features, random_weights
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.result import ProbeResult
from hooked_asr.probes.stored import LabelledRows, fit_rows, label_rows
from hooked_asr.probes.tasks_hallucination import hallucination_rows
from hooked_asr.probes.tasks_semantic import semantic_rows

BASELINES = ("log-mel", "random weights")
CONFIDENCE = "confidence"  # of a transcript: a baseline where there is one


@dataclass(frozen=True)
class Task:
    """What is asked: the column that holds the answer, and where it is looked for.

    - `stack`: whose layers' streams are read; `pool`: how each clip becomes one row.
    """

    name: str
    label: str
    stack: str = "encoder"
    pool: str = "mean"


_NAMED = (
    Task("speaker_sex", "sex"),
    Task("noise", "noise"),
    Task("accent", "accent"),
    Task("speech", "speech"),
    Task("semantic", "category"),
    Task("hallucination", "hallucination", "decoder", "last"),
)
TASKS = {task.name: task for task in _NAMED}


@dataclass(frozen=True, eq=False)
class TaskResult:
    """The probes of a task.

    - `results`: by name: one, called as the task is, or of "semantic" one for each pair.
    - `store`: the features that they were fitted to; `rows`: which of its rows each result is of,
      the one that `ProbeResult.rows` calls 0 first. `about`: how they were chosen, in words.
    """

    task: str
    results: dict[str, ProbeResult]
    store: FeatureStore
    rows: dict[str, list[int]]
    about: str

    @property
    def result(self) -> ProbeResult:
        """The only result.

        Raises `ProbeError` where there are several.
        """
        if len(self.results) != 1:
            raise ProbeError(
                f"there is a result for each of {', '.join(self.results)}: ask .results for one"
            )
        return next(iter(self.results.values()))


def probe_task(
    task: str,
    model: Any,
    clips: Clips,
    *,
    out: str | os.PathLike[str],
    label: str | None = None,
    layers: str | Sequence[int] = "all",
    baselines: Sequence[str] = BASELINES,
    pairs: Sequence[tuple[str, str]] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    worst: float = 0.25,
    folds: int = 10,
    seed: int = 0,
    batch_size: int = 8,
    n_permutations: int = 10,
    n_resamples: int = 2000,
    skip_errors: bool = False,
    progress: bool = True,
    **prompt: Any,
) -> TaskResult:
    """Harvest what a task needs, and fit probes of all layers beside their baselines.

        found = probe_task("accent", model, "manifest.csv", out="accent")
        print(found.result.to_pandas())

    - `task`: "speaker_sex", "noise", "accent", "speech", "semantic", "hallucination", or any
      column of labels. Its labels stand in the column `label`, by default "sex", "noise", "accent",
      "speech", "category"; recordings without one are left out.
    - What is read: `encoder.*.hook_resid_post`, averaged over the real frames of each clip; of
      "hallucination" `decoder.*.hook_resid_post`, where the last token of the model's own
      transcript is read in.
    - "hallucination" compares transcripts without an error with the worst (`worst`, that share of
      all clips), as long as each other: see `hallucination_rows`. Clips need a text.
    - "semantic" fits a probe for each of `pairs` of categories, by default all. `categories`: the
      words or sentences of each, in place of a column: a clip is of the one that holds its text.
      Clips of one text are one group: what is told is told of words that were not fitted to.
    - `layers`: "all", or their numbers, from 0.
    - `clips`: see `read_clips`; their `group` (a speaker, say) is never on both sides of a fold.
    - `baselines`: any of "log-mel" (means and deviations of each band) and "random weights" (the
      same sites of an untrained model; in the decoder forced with the same transcripts); of
      "hallucination" also "confidence" (`confidence_features` of the transcripts). The commonest
      answer and shuffled labels are always there.
    - `out`: the folder for the features, where an interrupted harvest goes on; nothing of
      the result is written there.
    - `folds`, `seed`, `n_permutations`, `n_resamples`: see `fit_probes`. `batch_size`,
      `skip_errors`, `prompt` (and `language`): see `harvest`.

    Source: Glazer et al., "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), for
    the tasks; matching lengths and all baselines are additions.

    Raises `ProbeError` for a task, column, pair, layer or baseline that there is not, and for
    transcripts that make no two groups; and as `read_clips`, `harvest` and `fit_probes`.
    """
    read = read_clips(clips)
    asked = _asked(task, read, label, categories)
    _check(asked, baselines, worst)
    sites = _sites(model, asked.stack, layers)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "skip_errors": skip_errors,
        "progress": progress,
    }
    store = harvest(
        model, read, sites, pool=asked.pool, out=Path(out) / "features", **options, **prompt
    )
    chosen, about = _rows(asked, model, read, store, pairs, categories, worst)
    beside = _baselines(
        model, read, store, baselines, sites, asked, Path(out), seed, options, prompt
    )
    fitting: dict[str, Any] = {
        "folds": folds,
        "seed": seed,
        "n_permutations": n_permutations,
        "n_resamples": n_resamples,
        "progress": progress,
    }
    results = {one.name: fit_rows(store, one, baselines=beside, **fitting) for one in chosen}
    rows = {one.name: one.rows.tolist() for one in chosen}
    return TaskResult(task, results, store, rows, about)


# --- What is asked --------------------------------------------------------------------------------


def _asked(
    task: str, clips: Sequence[Clip], label: str | None, categories: Mapping[str, Any] | None
) -> Task:
    """The task, with the column that is really there."""
    columns = list(dict.fromkeys(name for clip in clips for name in clip.labels))
    known = TASKS.get(task)
    if known is None:
        if task not in columns and label is None:
            raise ProbeError(
                f"there is no task {task!r}, and no column of that name: tasks are "
                f"{', '.join(TASKS)}; columns are {', '.join(columns) or 'none'}"
            )
        known = Task(task, task)
    if task == "hallucination" or (task == "semantic" and categories is not None):
        return known
    column = label or known.label
    if column not in columns:
        raise ProbeError(
            f"the task {task!r} is told by a column {column!r}, which is not there: columns of "
            f"labels are {', '.join(columns) or 'none'}; name one with label="
        )
    return Task(known.name, column, known.stack, known.pool)


def _check(task: Task, baselines: Sequence[str], worst: float) -> None:
    known = (*BASELINES, *([CONFIDENCE] if task.stack == "decoder" else []))
    for one in baselines:
        if one not in known:
            raise ProbeError(
                f"baselines of {task.name} are {', '.join(map(repr, known))}; got {one!r}"
            )
    if not 0 < worst < 1:
        raise ProbeError(f"worst is a share of all clips, between 0 and 1; got {worst}")


def _sites(model: Any, stack: str, layers: str | Sequence[int]) -> list[str]:
    n = getattr(model.config, stack).n_layers
    chosen = range(n) if layers == "all" else layers
    for layer in chosen:
        if not isinstance(layer, int) or not 0 <= layer < n:
            raise ProbeError(f"the {stack} has layers 0 to {n - 1}, or 'all'; got {layer!r}")
    if not chosen:
        raise ProbeError(f"no layers: give some of 0 to {n - 1}, or 'all'")
    return [f"{stack}.{layer}.hook_resid_post" for layer in dict.fromkeys(chosen)]


def _rows(
    task: Task,
    model: Any,
    clips: Sequence[Clip],
    store: FeatureStore,
    pairs: Sequence[tuple[str, str]] | None,
    categories: Mapping[str, Sequence[str]] | None,
    worst: float,
) -> tuple[list[LabelledRows], str]:
    if task.name == "hallucination":
        return hallucination_rows(model, clips, store, worst)
    if task.name == "semantic":
        return semantic_rows(clips, store, task.label, pairs, categories)
    rows = label_rows(store, task.label, task.name)
    return [rows], f"{len(rows.rows)} clips with a {task.label}"


# --- Baselines ------------------------------------------------------------------------------------


def _baselines(
    model: Any,
    clips: Sequence[Clip],
    store: FeatureStore,
    names: Sequence[str],
    sites: Sequence[str],
    task: Task,
    out: Path,
    seed: int,
    options: Mapping[str, Any],
    prompt: Mapping[str, Any],
) -> dict[str, Any]:
    """For each baseline its features, a row for each of the store's."""
    by_id = {clip.id: clip for clip in clips}
    kept = [by_id[one.id] for one in store.clips]
    shown = bool(options["progress"])
    found: dict[str, Any] = {}
    if "log-mel" in names:
        found["log-mel"] = log_mel_features(model, kept, progress=shown)
    if CONFIDENCE in names:
        found[CONFIDENCE] = confidence_features(
            model,
            _transcribed(kept, store),
            out=out / "confidence",
            batch_size=int(options["batch_size"]),
            progress=shown,
            **prompt,
        )
    if "random weights" in names:
        forced: dict[str, Any] = {}
        if task.stack == "decoder":  # it says nothing of its own: it reads what the other said
            kept, forced = _transcribed(kept, store), {"texts": "text"}
        random = harvest(
            random_weights(model, seed),
            kept,
            list(sites),
            pool=task.pool,
            out=out / "features of random weights",
            **{**options, **forced},
            **prompt,
        )
        found["random weights"] = random.features()
    return found


def _transcribed(clips: Sequence[Clip], store: FeatureStore) -> list[Clip]:
    """Clips with the transcripts that the store was made with as their texts."""
    return [
        replace(clip, text=said.text or "", language=said.language)
        for clip, said in zip(clips, store.clips, strict=True)
    ]
