"""How good a sparse autoencoder is: for its activations, and for the model they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from hooked_asr.errors import HookedASRError
from hooked_asr.features.forcing import TEXTS, Asking
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.patching.engine.memory import as_bytes
from hooked_asr.processes import Process
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.measuring.loss import ClipLosses, Trial, clip_losses
from hooked_asr.sae.measuring.result import ClipMeasures, SAEMeasures
from hooked_asr.sae.measuring.sums import SiteSums, summed
from hooked_asr.weights.fingerprint import computed_with

_MEMORY = 2**28  # bytes of features at a time


@torch.no_grad()
def measure_sae(
    sae: SparseAutoencoder,
    model: Any,
    clips: Clips,
    *,
    texts: str = "heard",
    language: str | None = None,
    losses: bool = True,
    wer: bool = True,
    batch_size: int = 8,
    memory: int | str | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **prompt: Any,
) -> SAEMeasures:
    """Measure an autoencoder on recordings, best such as it was not trained on.

        measures = measure_sae(sae, model, "heldout.csv")
        measures.to_pandas(), measures.plot(), measures.save("measures.json")

    Of its site's activations at every real position (frames that hear any of the clip; in the
    decoder, tokens of text): explained variance, active features, dead ones. Of the model, with the
    reconstruction put in place at these same positions: how much likelier or unlikelier transcripts
    are (against the site's mean, or zeros, in place), KL, and word errors.

    - `clips`: a folder, a manifest or a list, see `read_clips`; a window (30 s) each at most.
    - `texts`: whose likelihood: "heard", the model's own transcripts, or "text", the clips' own.
    - `language`: of clips that name none; otherwise Whisper tells it from the sound.
    - `losses`: False for what needs no decoder; `wer`: whether each clip is transcribed again.
    - `batch_size`: clips at a time, for activations. `memory`: what features, and then the rows of
      a clip's run, may take: bytes, or as "2 GiB".
    - `out`: a folder where clips' losses are kept as they come. Run again, it goes on where it was.
    - `prompt`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio.

    Raises `SAEError` for options that do not fit, an autoencoder of another model, or a clip that
    cannot be used; `ManifestError` as `read_clips`; `RecordsError` for an `out` of other work.
    """
    read = read_clips(clips)
    _check(model, read, texts, batch_size, prompt)
    spec = sae.spec(model)
    limit = _MEMORY if memory is None else as_bytes(memory, torch.device(model.device))
    asking = Asking(texts, language, prompt)
    sums = summed(
        sae, model, spec, read, asking, batch_size=batch_size, memory=limit, progress=progress
    )
    if not sum(clip.rows for clip in sums.clips):
        raise SAEError(f"{len(read)} clips have no real position at {spec.name}: give others")
    trial = Trial(sae, spec, sums.mean, texts, language, wer, memory, prompt)
    lost = _losses(model, read, trial, out, progress) if losses else [None] * len(read)
    return _result(sae, model, read, sums, lost)


def _check(
    model: Any, clips: Sequence[Clip], texts: str, batch_size: int, prompt: dict[str, Any]
) -> None:
    if texts not in TEXTS:
        raise SAEError(f"texts is {' or '.join(TEXTS)}; got {texts!r}")
    if batch_size < 1:
        raise SAEError(f"at least 1 clip is run at a time; got batch_size={batch_size}")
    wrong = [name for name in prompt if name not in model.asked_by]
    if wrong:
        raise SAEError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    without = [clip.id for clip in clips if clip.text is None]
    if texts == "text" and without:
        raise SAEError(
            f"clip {without[0]!r} has no text to force: give the manifest a column of them, or "
            "texts='heard'"
        )


def _losses(
    model: Any,
    clips: Sequence[Clip],
    trial: Trial,
    out: str | os.PathLike[str] | None,
    progress: bool,
) -> list[ClipLosses | None]:
    by_id = {clip.id: clip for clip in clips}

    def work(key: str) -> dict[str, Any]:
        clip = by_id[key]
        try:
            return asdict(clip_losses(model, clip, trial))
        except (HookedASRError, OSError) as error:
            raise SAEError(f"clip {key!r} ({clip.audio_path}): {error}") from error

    alone = Process(0, 1)  # whatever the environment says: nothing is shared here
    done = work_through(
        list(by_id),
        work,
        folder=out,
        asked={} if out is None else _asked(model, clips, trial),
        process=alone,
        progress=progress,
        name="losses",
        unit="clip",
    )
    return [ClipLosses(**done.results[key]) for key in by_id]


def _asked(model: Any, clips: Sequence[Clip], trial: Trial) -> Mapping[str, Any]:
    """All that the losses depend on."""
    return {
        "work": "measure_sae",
        **computed_with(model),
        "autoencoder (hash)": trial.sae.identity,
        "site": trial.spec.name,
        "clips (hash)": clips_hash(clips),
        "texts": trial.texts,
        "language": trial.language,
        "wer": trial.wer,
        "prompt": dict(trial.prompt),
    }


def _result(
    sae: SparseAutoencoder,
    model: Any,
    clips: Sequence[Clip],
    sums: SiteSums,
    lost: Sequence[ClipLosses | None],
) -> SAEMeasures:
    mean, rows = sums.mean, sum(clip.rows for clip in sums.clips)
    each = [
        ClipMeasures(
            id=clip.id,
            group=clip.group,
            rows=own.rows,
            error=own.error,
            spread=own.about(mean),
            active=own.active,
            losses=losses,
        )
        for clip, own, losses in zip(clips, sums.clips, lost, strict=True)
    ]
    most = int(sums.rows_with.nonzero().max())
    return SAEMeasures(
        site=sae.site,
        model=model.name,
        architecture=sae.sae.cfg.architecture(),
        clips=each,
        rows_with=sums.rows_with[: most + 1].tolist(),
        density=(sums.counts.double() / rows).tolist(),
        greatest=sums.greatest.tolist(),
    )
