"""What a concept does: transcripts with and without interventions, over many recordings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from hooked_asr.concepts.doses import Dose, Doses, as_doses
from hooked_asr.concepts.effect_clip import OWN, Asking, clip_record
from hooked_asr.concepts.effect_result import ConceptEffect, effect_of_records
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import to_json
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.processes import Process
from hooked_asr.weights.fingerprint import computed_with


@torch.no_grad()
def concept_effect(
    model: Any,
    clips: Clips,
    interventions: Doses,
    *,
    texts: Sequence[str | None] | None = None,
    language: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> ConceptEffect:
    """Decode recordings without and with interventions, and measure what these change.

        doses = steering([early, late], [-1.0, 0.5, 1.0, 2.0])
        effect = concept_effect(model, "clips.csv", doses, out="run")
        effect.to_pandas(), effect.plot(language="de")

    - `clips`: a folder, a manifest or a list, see `read_clips`; a window (30 s) each at most.
    - `interventions`: each an intervention, a list of them that act together, or a `Dose` (see
      `steering`); a mapping gives them names. Whisper decodes all of them on one clip as a batch,
      `batch_size` at a time; Qwen2-Audio one by one.
    - `texts`: what is said in each clip, in their order, where the clips' own rows do not say.
      Error rates are against it, or where it is not known, the unmodified transcript.
    - `language`: in which Whisper is asked; if not said, in that which it identifies in each
      decoding, so that an intervention may change it; "own" for that of each clip's row.
    - `out`: a folder where results are kept as they come. Run again, it goes on where it was.
    - `skip_errors`: note clips that cannot be read, and go on; otherwise the first one ends it.
    - `process`: under torchrun, processes share the clips; they need the same `out`.
    - `prompt`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio.

    The unmodified transcript is also forced, token by token, under each intervention: how likely it
    still is, and how far (KL) the next-token distributions have moved.

    Raises `ConceptError` for options that do not fit, or a clip that cannot be read;
    `ManifestError` as `read_clips`; `RecordsError` for an `out` that holds other work;
    `InterventionError` where what is to be resumed cannot be kept (`interventions.to_json`).
    """
    doses = as_doses(interventions)
    how = Asking(language, max_new_tokens, batch_size, prompt)
    read = _with_texts(read_clips(clips), texts)
    _check(model, read, how)
    by_id = {clip.id: clip for clip in read}

    def work(key: str) -> dict[str, Any]:
        try:
            return clip_record(model, by_id[key], doses, how)
        except (HookedASRError, OSError) as error:
            raise ConceptError(f"clip {key!r} ({by_id[key].audio_path}): {error}") from error

    done = work_through(
        list(by_id),
        work,
        folder=out,
        asked=_asked(model, read, doses, how) if out is not None else {},
        skip=(ConceptError,) if skip_errors else (),
        process=process,
        progress=progress,
        name="concept effect",
        unit="clip",
    )
    if not done.results:
        first = next(iter(done.failures.values()))
        raise ConceptError(f"none of {len(read)} clips can be read; the first: {first}")
    return effect_of_records(model, read, doses, done)


def _with_texts(clips: list[Clip], texts: Sequence[str | None] | None) -> list[Clip]:
    if texts is None:
        return clips
    if len(texts) != len(clips):
        raise ConceptError(f"{len(clips)} clips take as many texts; got {len(texts)}")
    return [
        clip if text is None else replace(clip, text=text)
        for clip, text in zip(clips, texts, strict=True)
    ]


def _check(model: Any, clips: Sequence[Clip], how: Asking) -> None:
    wrong = [name for name in how.prompt if name not in model.asked_by]
    if wrong:
        raise ConceptError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    if how.language is None:
        return
    if "language" not in model.asked_by:
        raise ConceptError(f"{type(model).__name__} is asked in no language: leave it out")
    silent = [clip.id for clip in clips if clip.language is None]
    if how.language == OWN and silent:
        raise ConceptError(
            f"clip {silent[0]!r} has no language of its own: give the manifest a column of them, "
            "or say which language"
        )


def _asked(model: Any, clips: Sequence[Clip], doses: Sequence[Dose], how: Asking) -> dict[str, Any]:
    """All that the numbers depend on."""
    said = "".join(to_json(one.interventions, indent=None) for one in doses)
    return {
        "work": "concept_effect",
        **computed_with(model),
        "clips (hash)": clips_hash(clips),
        "doses": [one.label for one in doses],
        "interventions (hash)": hashlib.sha256(said.encode()).hexdigest(),
        **asdict(how),
    }
