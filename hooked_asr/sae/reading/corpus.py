"""A corpus through the model and an autoencoder of it, once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_asr.features.batch import Kept, Work, run_batch
from hooked_asr.features.forcing import TEXTS, Asking
from hooked_asr.features.loading import Heard, Unusable, heard, made_ahead
from hooked_asr.features.sites import chosen_sites
from hooked_asr.manifests import Clip
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.activity import Activity
from hooked_asr.sae.reading.row_labels import ReadClip


@dataclass(frozen=True)
class Passing:
    """How clips pass: see `read_features`."""

    texts: str = "heard"
    language: str | None = None
    prompt: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    skip_errors: bool = False
    progress: bool = True


@dataclass
class Passed:
    """The clips that were read, in order, and why others were not."""

    clips: list[ReadClip] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return self.clips[-1].span.stop if self.clips else 0


def pass_corpus(
    sae: SparseAutoencoder, model: Any, clips: Sequence[Clip], activity: Activity, how: Passing
) -> Passed:
    """Keep which features are active at every real position of every clip.

    In the encoder these are the frames that hear any of the clip; in the decoder, the tokens of
    its text.

    Raises `SAEError` for a clip that cannot be used, unless these are skipped, and where none can.
    """
    work = _work(sae, model, how)
    batches = [
        clips[start : start + how.batch_size] for start in range(0, len(clips), how.batch_size)
    ]
    done = Passed()
    with tqdm(total=len(clips), desc="clips", unit="clip", disable=not how.progress) as bar:
        for batch in made_ahead(lambda some: _read(model, some, work), batches):
            for one in _run(model, batch, work):
                _keep(sae, model, one, activity, done, how.skip_errors)
                bar.update()
    if not done.clips:
        first = next(iter(done.failed.values()))
        raise SAEError(f"none of {len(clips)} clips can be used; the first: {first}")
    return done


def _work(sae: SparseAutoencoder, model: Any, how: Passing) -> Work:
    if how.texts not in TEXTS:
        raise SAEError(f"texts is {' or '.join(TEXTS)}; got {how.texts!r}")
    if how.batch_size < 1:
        raise SAEError(f"at least 1 clip is run at a time; got batch_size={how.batch_size}")
    wrong = [name for name in how.prompt if name not in model.asked_by]
    if wrong:
        raise SAEError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    spec = sae.spec(model)
    pool = "tokens" if spec.clock == "pos" else "frames"
    asking = Asking(how.texts, how.language, how.prompt)
    return Work(chosen_sites(model, spec.name), pool, asking, None)


def _read(model: Any, clips: Sequence[Clip], work: Work) -> list[Heard | Unusable]:
    return [heard(model, clip, work.forces, work.asking.prompt) for clip in clips]


def _run(model: Any, batch: Sequence[Heard | Unusable], work: Work) -> list[Kept | Unusable]:
    """A batch with what could be read of it, in its order."""
    usable = [one for one in batch if isinstance(one, Heard)]
    done = iter(run_batch(model, usable, work) if usable else [])
    return [next(done) if isinstance(one, Heard) else one for one in batch]


def _keep(
    sae: SparseAutoencoder,
    model: Any,
    one: Kept | Unusable,
    activity: Activity,
    done: Passed,
    skip_errors: bool,
) -> None:
    if isinstance(one, Unusable):
        if not skip_errors:
            raise SAEError(one.reason) from one.error
        done.failed[one.clip.id] = one.reason
        return
    rows = next(iter(one.rows.values()))
    first = done.n_rows
    if len(rows):
        activity.add(first, sae.encode(rows.to(sae.directions.device, torch.float32)))
    clip = one.heard.clip
    tokens = None
    if one.forced is not None:
        tokens = [str(model.tokenizer.decode([token])) for token in one.forced.said]
    done.clips.append(
        ReadClip(
            id=clip.id,
            audio=os.path.abspath(clip.audio_path),
            seconds=one.seconds,
            start=first,
            rows=len(rows),
            group=clip.group,
            labels=_labels(clip),
            tokens=tokens,
        )
    )


def _labels(clip: Clip) -> dict[str, Any]:
    """Those that name a class; lists and the like are alignments."""
    own = {"language": clip.language, **clip.labels}
    plain = (str, int, float, bool)
    return {name: value for name, value in own.items() if isinstance(value, plain)}
