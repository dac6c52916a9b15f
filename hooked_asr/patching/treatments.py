"""The same recordings decoded under one set of interventions after another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_asr.audio import load_audio
from hooked_asr.errors import HookedASRError
from hooked_asr.generation import Generated
from hooked_asr.interventions import Intervention, InterventionError, to_json
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.patching.loops import longest_loop
from hooked_asr.patching.treatments_result import Treated, TreatmentResult
from hooked_asr.processes import Process
from hooked_asr.speech import normaliser, wer
from hooked_asr.speech.repetition import MIN_REPEATS
from hooked_asr.weights.fingerprint import computed_with


class TreatmentError(HookedASRError):
    """Treatments that cannot be compared, or a recording that cannot be decoded."""


@torch.no_grad()
def treatments(
    model: Any,
    clips: Clips,
    arms: Mapping[str, Iterable[Any]],
    *,
    language: str | None = None,
    min_repeats: int = MIN_REPEATS,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    out: str | os.PathLike[str] | None = None,
    process: Process | None = None,
    progress: bool = True,
) -> TreatmentResult:
    """Transcribe recordings under each treatment, and set word errors and loops side by side.

        arms = {"as it is": [], "head off": [zero("decoder.2.cross_attn.1")]}
        print(treatments(model, "clips.csv", arms).to_pandas())

    - `clips`: a folder, a manifest or a list, see `read_clips`; word errors are of those with a
      text.
    - `arms`: by name, what `generate` takes as interventions; the first is what the others are
      compared with. What holds a state of its own (a `monitors.Gate`) starts anew by itself.
    - `language`: of clips that name none; otherwise Whisper tells it from the sound.
    - `min_repeats`: how often at least a loop says the same; where it is known what was said, it
      says it more often than that.
    - `batch_size`: clips decoded together, greedily.
    - `out`: a folder where results are kept as they come; run again, it goes on where it was.
      Functions of your own are told apart by their names alone.
    - `process`: under torchrun, processes share the work; they need the same `out`.

    Raises `TreatmentError` for no arms, or a recording that cannot be used; `ManifestError` as
    `read_clips`; `RecordsError` for an `out` that holds other work.
    """
    read = read_clips(clips)
    hooks = {name: list(own) for name, own in arms.items()}
    if not hooks or batch_size < 1:
        raise TreatmentError("give at least one arm, as in {'as it is': []}, and a batch_size")
    options = {"language": language, "max_new_tokens": max_new_tokens}
    batches = [read[i : i + batch_size] for i in range(0, len(read), batch_size)]
    keys = {f"{name} {i}": (name, own) for name in hooks for i, own in enumerate(batches)}

    def treat(key: str) -> list[dict[str, Any]]:
        name, own = keys[key]
        heard = _decoded(model, own, hooks[name], options)
        return [
            _outcome(model, clip, one, min_repeats) for clip, one in zip(own, heard, strict=True)
        ]

    told = {
        "work": "treatments",
        **computed_with(model),
        "clips (hash)": clips_hash(read),
        "arms (hash)": {name: _hash(own) for name, own in arms.items()},
        "min_repeats": min_repeats,
        "batch_size": batch_size,
        **options,
    }
    done = work_through(
        list(keys),
        treat,
        folder=out,
        asked=told,
        process=process,
        progress=progress,
        name="treatments",
        unit="batch",
    )
    found: dict[str, list[Treated]] = {name: [] for name in hooks}
    for key, outcomes in done.results.items():
        found[keys[key][0]] += [Treated(**one) for one in outcomes]
    return TreatmentResult(
        clips=[clip.id for clip in read],
        groups=[clip.group for clip in read],
        said=[clip.text for clip in read],
        arms=found,
        model=model.name,
    )


def told_of(hooks: Iterable[Any]) -> list[Any]:
    """What hooks do, as far as they tell: interventions all of it, functions their names."""
    own = getattr(hooks, "told", None)  # a gate's
    return own if own is not None else [_told(selector, fn) for selector, fn in hooks]


def _told(selector: Any, fn: Any) -> tuple[str, str]:
    if isinstance(fn, Intervention):
        try:
            return str(selector), to_json([fn], indent=None)
        except InterventionError:  # a recording that is decoded beside
            return str(selector), str(fn)
    return str(selector), str(getattr(fn, "__qualname__", type(fn)))


def _hash(hooks: Iterable[Any]) -> str:
    return hashlib.sha256(repr(told_of(hooks)).encode()).hexdigest()


# --- One batch ------------------------------------------------------------------------------------


def _decoded(
    model: Any, clips: Sequence[Clip], hooks: Sequence[Any], options: Mapping[str, Any]
) -> list[Generated]:
    sounds = [_sound(model, clip) for clip in clips]
    given = {"interventions": hooks, "max_new_tokens": options["max_new_tokens"]}
    if model.config.prefix:
        (prompt,) = model.settled(sounds[0]).values()
        return list(model.generate(**model.to_inputs(sounds, [prompt] * len(sounds)), **given))
    told = [clip.language or options["language"] for clip in clips]
    # Languages are told as the clip is, not as interventions would have it heard.
    languages = [
        language or model.settled(sound)["language"]
        for language, sound in zip(told, sounds, strict=True)
    ]
    return list(model.generate(sounds, language=languages, **given))


def _sound(model: Any, clip: Clip) -> Tensor:
    try:
        samples = load_audio(clip.audio_path)
        if model.config.prefix:
            model.to_mel(samples)  # refused here, where it is longer than a window
    except (HookedASRError, OSError) as error:
        raise TreatmentError(f"clip {clip.id!r} ({clip.audio_path}): {error}") from error
    return samples


def _outcome(model: Any, clip: Clip, heard: Generated, min_repeats: int) -> dict[str, Any]:
    language = clip.language or getattr(heard, "language", None) or "en"
    return {
        "text": heard.text,
        "n_tokens": len(heard.tokens),
        "looping": longest_loop(model, heard, min_repeats, clip.text) is not None,
        "wer": wer(clip.text, heard.text, normaliser(language)) if clip.text else None,
    }
