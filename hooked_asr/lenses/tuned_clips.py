"""What a tuned lens is trained on: clips, each forced with a transcript."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.errors import HookedASRError
from hooked_asr.lenses.errors import LensError
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, read_clips
from hooked_asr.patching.operations import Inputs, as_inputs
from hooked_asr.processes import Process

_NAMED = 5  # clips that a message names


@dataclass(frozen=True, eq=False)
class LensClip:
    """A clip: its path, samples at 16 kHz, or the inputs of a run, with which nothing is left open.

    `text` and `language`: None where the model is to tell them.
    """

    name: str
    source: Any
    text: str | None = None
    language: str | None = None

    @property
    def run(self) -> Inputs | None:
        """The inputs, where they were given."""
        return as_inputs(self.source) if _is_run(self.source) else None


@dataclass(frozen=True)
class LensClips:
    """Clips that can all be heard; `digest`: of what is heard in them, and known to be said."""

    clips: list[LensClip]
    digest: str


def gathered(
    model: Any,
    audio: Any,
    texts: Sequence[str | None] | None,
    asked: Mapping[str, Any],
    skip_unreadable: bool = False,
    progress: bool = True,
) -> LensClips:
    """The clips of a folder, a manifest or a list, all of them read once.

    Raises `LensError` for options that the model is not asked by, texts that do not fit, or clips
    that cannot be read (with `skip_unreadable` a warning, while there are others); `ManifestError`
    as `read_clips`.
    """
    wrong = [name for name in asked if name not in model.asked_by]
    if wrong:
        raise LensError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    clips = _with_texts(_clips(audio), texts)
    digest, heard, failures = hashlib.sha256(), [], []
    for clip in tqdm(clips, desc="reading", unit="clip", disable=not progress):
        content, failure = _content(model, clip)
        digest.update(content)
        if failure:
            failures.append(f"{clip.name}: {failure}")
        else:
            heard.append(clip)
    _check_failures(failures, len(clips), skip_unreadable)
    return LensClips(heard, digest.hexdigest())


def taught(
    model: Any,
    clips: Sequence[LensClip],
    asked: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Callable[[], Inputs]]:
    """How each run's inputs are made: with the model's greedy transcript, where none is known.

    `folder`, `settings`: where transcripts are kept, and what they depend on (see `work_through`).
    """
    wanting = [i for i, clip in enumerate(clips) if _is_open(model, clip, asked)]
    batches = {
        f"{start}": wanting[start : start + batch_size]
        for start in range(0, len(wanting), batch_size)
    }
    done = work_through(
        list(batches),
        lambda key: _told(model, [clips[i] for i in batches[key]], asked),
        folder=folder,
        asked=settings,
        process=Process(),
        progress=progress and bool(batches),
        name="transcripts",
        unit="batch",
    )
    known = list(clips)
    for key, told in done.results.items():
        for i, (text, language) in zip(batches[key], told, strict=True):
            known[i] = replace(clips[i], text=text, language=language)
    return [partial(_inputs, model, clip, dict(asked)) for clip in known]


# --- What is given --------------------------------------------------------------------------------


def _clips(audio: Any) -> list[LensClip]:
    if _in_memory(audio):
        audio = [audio]
    if isinstance(audio, list | tuple) and any(map(_in_memory, audio)):
        return [clip for i, one in enumerate(audio) for clip in _one(i, one)]
    return [_of_row(pair) for pair in read_clips(audio)]


def _one(i: int, given: Any) -> list[LensClip]:
    if _in_memory(given):
        return [LensClip(f"clip {i}", given)]
    return [_of_row(pair) for pair in read_clips([given])]


def _of_row(row: Clip) -> LensClip:
    return LensClip(row.id, row.audio_path, row.text, row.language)


def _in_memory(one: Any) -> bool:
    return isinstance(one, np.ndarray | Tensor) or _is_run(one)


def _is_run(one: Any) -> bool:
    if isinstance(one, Mapping):
        return "tokens" in one
    return isinstance(one, tuple) and len(one) == 2 and getattr(one[0], "ndim", 0) == 3


def _with_texts(clips: list[LensClip], texts: Sequence[str | None] | None) -> list[LensClip]:
    if texts is None:
        return clips
    if isinstance(texts, str) or len(texts) != len(clips):
        n_texts = 1 if isinstance(texts, str) else len(texts)
        raise LensError(
            f"{len(clips)} clips take as many texts; got {n_texts}: give what is said in each, in "
            "their order, and None where the model is to tell"
        )
    return [
        clip if text is None else replace(clip, text=text)
        for clip, text in zip(clips, texts, strict=True)
    ]


def _check_failures(failures: list[str], n_clips: int, skip: bool) -> None:
    if not failures:
        return
    named = "; ".join(failures[:_NAMED])
    more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    said = f"{len(failures)} of {n_clips} clips cannot be used: {named}{more}"
    if not skip or len(failures) == n_clips:
        raise LensError(f"{said}. Leave them out, or give skip_unreadable=True")
    warnings.warn(f"{said}. They are skipped", stacklevel=4)


def _content(model: Any, clip: LensClip) -> tuple[bytes, str]:
    """What the model hears, and what is known to be said in it; or why it cannot be heard."""
    said = f"{clip.text!r} {clip.language!r}".encode()
    try:
        return said + _bytes(_heard_of(model, clip)), ""
    except (HookedASRError, OSError) as error:
        return b"", str(error)


def _heard_of(model: Any, clip: LensClip) -> list[Tensor]:
    if clip.run is None:
        return [model.to_mel(clip.source)]
    if len(clip.run["tokens"]) != 1:
        raise LensError("a run has one row of tokens: give a list of runs for several")
    return [clip.run[name] for name in sorted(clip.run)]


def _bytes(tensors: Iterable[Tensor]) -> bytes:
    made = hashlib.sha256()
    for one in tensors:
        made.update(f"{one.dtype} {list(one.shape)}".encode())
        made.update(one.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.digest()


# --- What is said ---------------------------------------------------------------------------------


def _is_open(model: Any, clip: LensClip, asked: Mapping[str, Any]) -> bool:
    """Whether the model is to tell anything of a clip."""
    if clip.run is not None:
        return False
    language = clip.language or asked.get("language")
    return clip.text is None or ("language" in model.asked_by and language is None)


def _told(
    model: Any, clips: Sequence[LensClip], asked: Mapping[str, Any]
) -> list[tuple[str, str | None]]:
    """Text and language of each clip; the model's greedy transcript, and language, where open."""
    told: dict[int, tuple[str, str | None]] = {}
    with model.unhooked():
        for i, clip in enumerate(clips):
            if clip.text is not None:
                told[i] = clip.text, model.settled(clip.source, **asked).get("language")
        for known in (True, False):  # a decoding is given all of its languages, or none
            here = [
                i for i, one in enumerate(clips) if i not in told and bool(one.language) is known
            ]
            if here:
                told |= dict(zip(here, _heard(model, [clips[i] for i in here], asked), strict=True))
    return [told[i] for i in range(len(clips))]


def _heard(
    model: Any, clips: list[LensClip], asked: Mapping[str, Any]
) -> list[tuple[str, str | None]]:
    sources = [clip.source for clip in clips]
    if "language" not in model.asked_by:
        texts = model.transcribe(sources, **asked)
        return [(text, None) for text in texts]
    own = {"language": [clip.language for clip in clips]} if clips[0].language else {}
    heard = model.generate(sources, **{**asked, **own})
    return [(one.text, one.language) for one in heard]


def _inputs(model: Any, clip: LensClip, asked: dict[str, Any]) -> Inputs:
    """The inputs of a clip's run, no longer than the decoder has room for."""
    made = clip.run
    if made is None:
        if "language" in model.asked_by and clip.language:
            asked = {**asked, "language": clip.language}
        with model.unhooked():
            settled = asked if "language" in asked else model.settled(clip.source, **asked)
        made = model.to_inputs(clip.source, text=clip.text, **settled)
    n_ctx = model.config.decoder.n_ctx
    short = ("tokens", "attention_mask")
    return {name: value[:, :n_ctx] if name in short else value for name, value in made.items()}
