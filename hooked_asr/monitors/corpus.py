"""What is heard in every recording of a corpus, with monitors reading along."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.audio import load_audio
from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import Intervention, to_json
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.generate import Monitored, generate_monitored
from hooked_asr.monitors.monitor import Monitor
from hooked_asr.monitors.scores import ClipScores
from hooked_asr.monitors.transcripts import ClipTranscripts, HeardClip
from hooked_asr.processes import Process
from hooked_asr.weights.fingerprint import computed_with


@dataclass(frozen=True)
class Asking:
    """How every recording is decoded; see `transcribe_clips`."""

    language: str | None
    max_new_tokens: int | None
    skip_errors: bool
    interventions: Sequence[Intervention]
    prompt: Mapping[str, Any]


def transcribe_clips(
    model: Any,
    clips: Clips,
    monitors: Sequence[Monitor] = (),
    *,
    interventions: Sequence[Intervention] = (),
    language: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    out: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> ClipTranscripts:
    """Transcribe a corpus, greedily, and score each clip by each monitor.

        heard = transcribe_clips(model, "clips.csv", [monitor], out="heard")
        heard.to_pandas()[["clip", "heard", "words", "words_kept"]]

    - `clips`: a folder, a manifest or a list, see `read_clips`.
    - `monitors`: read while the model decodes, which they do not change; see
      `generate_monitored`.
    - `interventions`: alive in every decoding; monitors see what they leave.
    - `language`: of clips that name none; otherwise Whisper tells it from the sound.
    - `batch_size`: clips decoded together.
    - `out`: a folder where results are kept as they come. Run again, it goes on where it was.
    - `skip_errors`: note clips that cannot be used, and go on; otherwise the first one ends it.
    - `process`: under torchrun, processes share the clips; they need the same `out`.
    - `prompt`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio, whose answer
      to any question is what is heard.

    Raises `MonitorError` for options that do not fit, or a clip that cannot be used;
    `ManifestError` as `read_clips`; `RecordsError` for an `out` that holds other work;
    `InterventionError` where what is to be kept cannot be (`interventions.to_json`).
    """
    read = read_clips(clips)
    how = Asking(language, max_new_tokens, skip_errors, interventions, prompt)
    _check(model, monitors, batch_size, how)
    batches = {f"{i}": read[i : i + batch_size] for i in range(0, len(read), batch_size)}
    done = work_through(
        list(batches),
        lambda key: _batch(model, batches[key], monitors, how),
        folder=out,
        asked={} if out is None else _asked(model, read, monitors, batch_size, how),
        process=process,
        progress=progress,
        name="transcripts",
        unit="batch",
    )
    found = {name: said for of_batch in done.results.values() for name, said in of_batch.items()}
    failed = {name: said["failure"] for name, said in found.items() if "failure" in said}
    heard = [HeardClip(one, **found[one.id]) for one in read if one.id not in failed]
    return ClipTranscripts(heard, _names(monitors), str(model.name), failed)


# --- One batch ------------------------------------------------------------------------------------


@torch.no_grad()
def _batch(
    model: Any, clips: Sequence[Clip], monitors: Sequence[Monitor], how: Asking
) -> dict[str, dict[str, Any]]:
    """What is heard in each clip, or why nothing is, as JSON holds it."""
    sounds = {clip.id: _sound(model, clip, how.skip_errors) for clip in clips}
    usable = [clip for clip in clips if isinstance(sounds[clip.id], Tensor)]
    found = {name: {"failure": one} for name, one in sounds.items() if isinstance(one, str)}
    if usable:
        heard = _heard(model, usable, [sounds[clip.id] for clip in usable], monitors, how)
        for i, clip in enumerate(usable):
            found[clip.id] = _said(model, heard.said[i], [one[i] for one in heard.by_monitor])
    return found


def _sound(model: Any, clip: Clip, skip_errors: bool) -> Tensor | str:
    """A clip's samples at 16 kHz, or why there are none."""
    try:
        samples = load_audio(clip.audio_path)
        if model.config.prefix:
            model.to_mel(samples)  # refused here, where it is longer than a window
    except (HookedASRError, OSError) as error:
        reason = f"clip {clip.id!r} ({clip.audio_path}): {error}"
        if skip_errors:
            return reason
        raise MonitorError(reason) from error
    return samples


def _said(model: Any, said: Any, scores: Sequence[ClipScores]) -> dict[str, Any]:
    return {
        "heard": said.text,
        "language": getattr(said, "language", None),
        "tokens": [] if model.tokenizer is None else model.to_str_tokens(said.tokens),
        "scores": [one.final for one in scores],
        "flagged": [one.flagged for one in scores],
        "token_scores": [one.tokens for one in scores],
    }


def _heard(
    model: Any,
    clips: Sequence[Clip],
    sounds: list[Any],
    monitors: Sequence[Monitor],
    how: Asking,
) -> Monitored:
    options: dict[str, Any] = {"max_new_tokens": how.max_new_tokens}
    if how.interventions:
        options["interventions"] = list(how.interventions)
    if model.config.prefix:
        (prompt,) = model.settled(sounds[0], **how.prompt).values()
        options |= model.to_inputs(sounds, [prompt] * len(sounds))
        audio = None
    else:
        languages = [
            one.language or how.language or model.settled(sound)["language"]
            for one, sound in zip(clips, sounds, strict=True)
        ]
        options |= {"language": languages, **how.prompt}
        audio = sounds
    if monitors:
        return generate_monitored(model, monitors, audio, **options)
    given = () if audio is None else (audio,)
    return Monitored(model.generate(*given, **options), [])


# --- What is asked --------------------------------------------------------------------------------


def _check(model: Any, monitors: Sequence[Monitor], batch_size: int, how: Asking) -> None:
    wrong = [name for name in how.prompt if name not in model.asked_by]
    if wrong:
        raise MonitorError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    if how.language is not None and "language" not in model.asked_by:
        raise MonitorError(f"{type(model).__name__} is asked in no language: leave it out")
    if batch_size < 1:
        raise MonitorError(f"at least 1 clip is decoded at a time; got batch_size={batch_size}")
    for one in monitors:
        one.probe.check(model)
        one.spec(model)


def _asked(
    model: Any,
    clips: Sequence[Clip],
    monitors: Sequence[Monitor],
    batch_size: int,
    how: Asking,
) -> dict[str, Any]:
    """All that the results depend on."""
    acting = to_json(how.interventions, indent=None)
    return {
        "work": "transcribe_clips",
        **computed_with(model),
        "clips (hash)": clips_hash(clips),
        "monitors (hash)": [_hash(one) for one in monitors],
        "batch_size": batch_size,
        "interventions (hash)": hashlib.sha256(acting.encode()).hexdigest(),
        **{name: value for name, value in vars(how).items() if name != "interventions"},
    }


def _names(monitors: Sequence[Monitor]) -> list[str]:
    """What each monitor tells, and where it reads if another tells the same."""
    told = [one.name for one in monitors]
    return [
        f"{one.name} at {one.probe.site}" if told.count(one.name) > 1 else one.name
        for one in monitors
    ]


def _hash(monitor: Monitor) -> str:
    probe = monitor.probe
    made = hashlib.sha256(repr((probe.site, probe.classes, probe.origin.pool)).encode())
    made.update(repr((monitor.threshold, monitor.alarm)).encode())
    for numbers in (probe.weights, probe.bias):
        made.update(numbers.detach().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()
