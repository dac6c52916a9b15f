"""From what a caller gives to recordings, and from decoded recordings to transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.audio import log_mel_of_any_length
from hooked_asr.generation import GenerationError, Transcript, end_tokens
from hooked_asr.generation.lockstep import references
from hooked_asr.generation.recording import Recording
from hooked_asr.generation.references import ReferenceRecordings
from hooked_asr.models import inputs as check
from hooked_asr.models.whisper_prompt import PromptError
from hooked_asr.shapes import MelMask
from hooked_asr.speech import language_code, token_compression_ratio


def is_mel(audio: Any) -> bool:
    """Whether this is log-mel frames `[clip n_mels frame]`, and not samples."""
    return isinstance(audio, Tensor) and audio.ndim == 3


def recordings_of(
    model: Any,
    audio: Any,
    sample_rate: int | None,
    mel_mask: MelMask | None,
    language: str | Sequence[str] | None,
) -> list[Recording]:
    """The recordings of what `generate` takes as audio, before anything is decoded.

    Raises `AudioError`, `InputError`, or `PromptError` for languages that do not fit.
    """
    if is_mel(audio):
        heard = _real_frames(model, audio, mel_mask)
    else:
        clips = audio if isinstance(audio, list | tuple) else [audio]
        extractor = model.working_extractor
        heard = [log_mel_of_any_length(clip, extractor, sample_rate) for clip in clips]
    languages = [language] * len(heard) if isinstance(language, str | None) else list(language)
    if len(languages) != len(heard):
        raise PromptError(
            f"{len(heard)} recordings take as many languages; got {len(languages)}: {languages}"
        )
    for spoken in languages:
        if spoken is not None:
            model.prompt(spoken)  # refused before any work
    return [
        Recording(
            clip=i,
            mel=mel.to(model.device, model.dtype),
            n_frames=mel.shape[1],
            n_heard=n,
            language=spoken and language_code(spoken),
        )
        for i, ((mel, n), spoken) in enumerate(zip(heard, languages, strict=True))
    ]


def references_of(model: Any) -> list[ReferenceRecordings]:
    """What is decoded beside, for the interventions that are attached now."""
    beside = []
    for one in references(model):
        source = one.lockstep
        heard = recordings_of(model, source.audio, source.sample_rate, source.mel_mask, None)
        beside.append(ReferenceRecordings(one, heard))
    return beside


def _real_frames(
    model: Any, mel: Float[Tensor, "_ n_mels _"], mel_mask: MelMask | None
) -> list[tuple[Tensor, int]]:
    """The frames of each recording that are to be decoded, and how many are sound."""
    n_frames = model.config.n_frames
    check.mel(mel[..., :n_frames], model.config)
    counts = [mel.shape[2]] * len(mel) if mel_mask is None else mel_mask.sum(1).tolist()
    if mel.shape[2] == n_frames:
        return list(zip(mel, counts, strict=True))
    return [(one[:, :n], n) for one, n in zip(mel, counts, strict=True)]


def previous_tokens(model: Any, prompt: str | Sequence[int] | None) -> tuple[int, ...]:
    """What came before, as it stands in front of the start token."""
    if prompt is None or not isinstance(prompt, str):
        return tuple(prompt or ())
    start = getattr(model.generation_config, "prev_sot_token_id", None)
    if start is None:
        start = model.to_single_token("<|startofprev|>")
    return (start, *model.encode_text(f" {prompt.strip()}"))


def alignment_heads(model: Any) -> tuple[tuple[int, int], ...]:
    """The cross-attention heads (layer, head) by which words are timed.

    Raises `GenerationError` where the checkpoint lists none.
    """
    heads = getattr(model.generation_config, "alignment_heads", None)
    if not heads:
        raise GenerationError(
            f"{model.name} lists no alignment heads, by which words are timed: find some with "
            "hooked_asr.patching.find_alignment_heads(model, recordings), and put what it "
            "gives into model.generation_config.alignment_heads"
        )
    return tuple((layer, head) for layer, head in heads)


def transcript_of(model: Any, recording: Recording) -> Transcript:
    """What was heard in a recording that is decoded to its end."""
    segments, heard = recording.segments, recording.heard
    tokens = [token for segment in segments for token in segment.tokens]
    logprobs = [one for window in heard for one in window.row.logprobs]
    ratio = heard[0].compression_ratio
    if len(heard) > 1:
        ratio = token_compression_ratio(tokens, model.config.d_vocab)
    end = min(end_tokens(model.generation_config), default=model.config.d_vocab)
    words = [word for segment in segments for word in segment.words or []]
    return Transcript(
        text=model.text_of([token for token in tokens if token < end]),
        tokens=tokens,
        language=recording.language or "",
        segments=segments,
        avg_logprob=fmean(logprobs) if logprobs else heard[0].row.avg_logprob,
        no_speech_prob=heard[0].no_speech_prob,
        compression_ratio=ratio,
        temperature=heard[-1].temperature,
        words=words if any(segment.words is not None for segment in segments) else None,
    )
