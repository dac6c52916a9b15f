"""Lenses over many recordings: what holds on the whole, language by language, and how surely."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hooked_asr.errors import HookedASRError
from hooked_asr.lenses.corpus_clip import FORCES, Settings, clip_record
from hooked_asr.lenses.corpus_records import lens_of_records
from hooked_asr.lenses.corpus_result import CorpusLens
from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.lenses.encoder_inputs import EACH, check_options, depths_of
from hooked_asr.lenses.encoder_result import EncoderLens, clip_from
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.phonemes import Phonemes
from hooked_asr.lenses.tuned import TunedLens
from hooked_asr.long_work import Done, work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.processes import Process
from hooked_asr.speech import language_code
from hooked_asr.speech.repetition import MIN_REPEATS
from hooked_asr.weights.fingerprint import computed_with


class CorpusError(LensError):
    """Recordings that no lens can be taken over, or not as asked."""


@torch.no_grad()
def corpus_lens(
    model: Any,
    clips: Clips,
    *,
    top_k: int = 5,
    ahead: int = 3,
    language: str | None = None,
    force: str = "heard",
    similarity: bool = True,
    phonemes: Phonemes | None = None,
    tuned: TunedLens | None = None,
    out: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> CorpusLens:
    """The logit lens over many recordings, by layer and language, with intervals.

        lens = corpus_lens(model, "recordings", out="run")
        lens.plot(), lens.to_pandas(), lens.saturation()

    Of each recording the lens is taken on one run, teacher-forced with a transcript, and averaged
    over its text: the positions at which a token of text comes next, and the model ends with one
    too. Prompt and special tokens do not count.

    - `clips`: a folder, a manifest or a list, see `manifests.read_clips`.
    - `top_k`: candidates to compare. `ahead`: how many of the tokens that follow to look for; the
      first of them is the one that the position itself is to say.
    - `language`: of clips that name none. Whisper is asked in it, or else tells it; for other
      models it is what clips are grouped by, and how their words are to sound.
    - `force`: the transcript: "heard", the model's own, greedily decoded by the checkpoint's rules;
      or "text", what the clip's row says.
    - `similarity`: compare candidates with the final token, see `candidate_similarity`; `phonemes`
      is its grapheme-to-phoneme.
    - `tuned`: a lens for the decoder to read with, in place of the logit lens.
    - `out`: a folder where results are kept as they come. Run again, it goes on where it was,
      however it ended, and gives the numbers of an uninterrupted run.
    - `skip_errors`: note clips that cannot be read, and go on; otherwise the first one ends it.
    - `process`: under torchrun, and wherever `RANK` and `WORLD_SIZE` are set, processes share the
      clips, and each gives the whole result; they need the same `out`.
    - `prompt`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio.

    Raises `CorpusError` for options that do not fit, for a clip that cannot be read, or where none
    can; `ManifestError` as `read_clips`; `RecordsError` for an `out` that holds other work.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025).
    """
    read = read_clips(clips)
    how = Settings(top_k, ahead, language, force, similarity, phonemes, tuned, prompt)
    _check(model, read, how)
    long = _Long(model, out, skip_errors, process, progress)
    done = long.through(read, "logit lens", lambda clip: clip_record(model, clip, how), _plain(how))
    return lens_of_records(model, read, how, done)


@torch.no_grad()
def encoder_corpus(
    model: Any,
    clips: Clips,
    *,
    layers: Sequence[int | str] | None = None,
    language: str | None = None,
    min_repeats: int = MIN_REPEATS,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    tuned: TunedLens | None = None,
    out: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **asked: Any,
) -> EncoderLens:
    """The encoder lens over many recordings: transcripts of each layer, and what they share.

        lens = encoder_corpus(model, "manifest.csv", out="run")
        lens.counts(by="language"), lens.languages(), lens.phrases()

    Each clip as `encoder_lens` has it, against its row's text where it has one. `clips`,
    `language`, `out`, `skip_errors` and `process` are those of `corpus_lens`, all else that of
    `encoder_lens`; `language="each"` asks each layer in the language that it tells.

    Raises what both of them do.
    """
    read = read_clips(clips)
    spoken = "language" in model.asked_by
    check_options(model, language if spoken else None, asked, batch_size)
    if tuned is not None:
        tuned.check_fits(model, "encoder")
    depths = depths_of(model, layers)
    options: dict[str, Any] = {
        "layers": layers,
        "min_repeats": min_repeats,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        **asked,
    }

    def work(clip: Clip) -> dict[str, Any]:
        known = clip.language or (None if language == EACH else language)
        told = EACH if language == EACH else known
        own = options if not spoken else {**options, "language": told}
        (found,) = encoder_lens(model, clip.audio_path, said=clip.text, tuned=tuned, **own).clips
        label = None if known is None else language_code(known)
        return asdict(found) | {"name": clip.id, "language": label, "group": clip.group}

    named = {"layers": depths, "language": language, "tuned": _lens_hash(tuned)}
    long = _Long(model, out, skip_errors, process, progress)
    done = long.through(read, "encoder lens", work, options | named)
    return EncoderLens(
        clips=[clip_from(one) for one in done.results.values()],
        min_repeats=min_repeats,
        model=model.name,
        failed=done.failures,
    )


# --- What both have in common ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Long:
    """Work on one clip after the other; the fields are options of `corpus_lens`."""

    model: Any
    out: str | os.PathLike[str] | None
    skip_errors: bool
    process: Process | None
    progress: bool

    def through(
        self,
        clips: Sequence[Clip],
        name: str,
        work: Callable[[Clip], dict[str, Any]],
        options: Mapping[str, Any],
    ) -> Done:
        """Every clip's record, and why there is none; `options` are what records depend on."""
        by_id = {clip.id: clip for clip in clips}
        done = work_through(
            list(by_id),
            lambda key: _named(by_id[key], work),
            folder=self.out,
            asked=None if self.out is None else self._asked(clips, name, options),
            skip=(CorpusError,) if self.skip_errors else (),
            process=self.process,
            progress=self.progress,
            name=name,
            unit="clip",
        )
        if not done.results:
            first = next(iter(done.failures.values()))
            raise CorpusError(f"none of {len(clips)} clips can be read; the first: {first}")
        return done

    def _asked(
        self, clips: Sequence[Clip], name: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "work": f"{name} of a corpus",
            **computed_with(self.model),
            "clips (hash)": clips_hash(clips),
            **options,
        }


def _named(clip: Clip, work: Callable[[Clip], dict[str, Any]]) -> dict[str, Any]:
    """A clip's record; what goes wrong tells which clip it is."""
    try:
        return work(clip)
    except (HookedASRError, OSError) as error:
        raise CorpusError(f"clip {clip.id!r} ({clip.audio_path}): {error}") from error


def _plain(how: Settings) -> dict[str, Any]:
    """The options as JSON holds them: a function by its name."""
    own = how.phonemes
    name = None if own is None else getattr(own, "__qualname__", type(own).__name__)
    against = "the final token, and one elsewhere" if how.similarity else None
    named = {"phonemes": name, "tuned": _lens_hash(how.tuned), "candidates against": against}
    return vars(how) | named


def _lens_hash(lens: TunedLens | None) -> str | None:
    """A name for a lens's translators."""
    if lens is None:
        return None
    made = hashlib.sha256()
    for name, weight in lens.state_dict().items():
        made.update(f"{name} {list(weight.shape)}".encode() + weight.cpu().numpy().tobytes())
    return made.hexdigest()


def _check(model: Any, clips: Sequence[Clip], how: Settings) -> None:
    """Raises `CorpusError` for what can be told before any work."""
    if how.force not in FORCES:
        raise CorpusError(f"a clip is forced with {' or '.join(FORCES)}; got {how.force!r}")
    if how.tuned is not None:
        how.tuned.check_fits(model, "decoder")
    if how.phonemes is not None and not how.similarity:
        raise CorpusError("phonemes are for similarity=True alone")
    wrong = [name for name in how.prompt if name not in model.asked_by]
    if wrong:
        raise CorpusError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    d_vocab = model.config.d_vocab
    if not 1 <= how.top_k <= d_vocab or how.ahead < 0:
        raise CorpusError(
            f"a lens keeps the top 1 to {d_vocab} tokens, and looks 0 or more ahead; got "
            f"top_k={how.top_k}, ahead={how.ahead}"
        )
    if how.force == "text":
        _check_all(clips, "text", "force", "force='heard'")
    if how.similarity and "language" not in model.asked_by and how.language is None:
        _check_all(
            clips, "language", "say how its words sound in", "language=, or similarity=False"
        )


def _check_all(clips: Sequence[Clip], column: str, wish: str, other: str) -> None:
    without = [clip.id for clip in clips if getattr(clip, column) is None]
    if without:
        raise CorpusError(
            f"clip {without[0]!r} has no {column} to {wish}: give the manifest a column of them, "
            f"or {other}"
        )
