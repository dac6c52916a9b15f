"""What a clip is patched from, as the command line writes it: made sounds, or recordings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hooked_asr.audio import (
    SAMPLE_RATE,
    AudioError,
    AudioSource,
    fit_length,
    load_audio,
    match_noise,
)
from hooked_asr.patching.alignment_heads import NoAlignmentError, find_alignment_heads
from hooked_asr.sounds import (
    NOISES,
    add_noise,
    babble,
    bundled_talkers,
    level,
    noise,
    noisy_span,
    resynthesised,
    rms,
)
from hooked_asr.speech import Word, combine_into_words, token_times
from hooked_asr.timing import FRAMES_PER_SECOND, encoder_length

Clip = Float[Tensor, " sample"]
Inputs = dict[str, Tensor]

REFERENCE_HELP = (
    "noise (white, as loud as the clip), silence, or a recording; white, pink, babble, hum or "
    "clicks instead of the clip, as loud as it; white:10 and the like, that noise in the clip, 10 "
    "dB below its speech; voice:NAME (of espeak-ng, as en-us+f3), the same words in another voice, "
    "each at its time, or voice:NAME:WORDS, as many other ones; span:START-END:SD, Gaussian noise "
    "on a stretch (s) of the spectrogram"
)

_KINDS = (*NOISES, "babble")
_SPAN = re.compile(r"([\d.]+)-([\d.]+):([\d.]+)")
_ONSET = 0.01  # of the loudest 20 ms: what is quieter than that before the first word is a pause


@dataclass(frozen=True, eq=False)
class ForcedClip:
    """A clip in a run that is forced with its transcript.

    - `samples`: at 16 kHz; `inputs`: of the run, whose text begins behind `n_prompt` tokens.
    - `asked`: the prompt's options.
    - `words`: with their times, where they are known; else a Whisper's attention tells them.
    """

    samples: Clip
    inputs: Inputs
    text: str
    n_prompt: int
    asked: dict[str, Any]
    words: Sequence[Any] | None = None


def reference_inputs(model: Any, reference: AudioSource, clip: ForcedClip, seed: int = 0) -> Inputs:
    """The inputs of a run on the reference, forced with the clip's own transcript.

    `reference`: as `REFERENCE_HELP` says, or samples at 16 kHz. Another recording is cut or padded
    with silence to the clip's length where that is how many positions it takes.

    Raises `AudioError` for what is no reference, `SynthesisError` where espeak-ng is missing,
    `NoAlignmentError` where the words' times are needed and cannot be found.
    """
    if isinstance(reference, str) and reference.startswith("span:"):
        lasts = len(clip.samples) / SAMPLE_RATE
        return clip.inputs | {"mel": _with_span(reference, clip.inputs["mel"], lasts, seed)}
    sound = reference_sound(reference, clip.samples, seed, lambda: _words(model, clip))
    if model.config.prefix:
        sound = fit_length(sound, len(clip.samples))
    made: Inputs = model.to_inputs(sound, text=clip.text, **clip.asked)
    return made


def reference_sound(
    reference: AudioSource,
    samples: Clip,
    seed: int = 0,
    words: Callable[[], Sequence[Any]] | None = None,
) -> Float[Tensor, " _"]:
    """The sound that a clip is patched from: see `REFERENCE_HELP`. Recordings keep their length.

    The level of a noise is that of `sounds.level` (pauses left out) where it lies over the clip at
    a signal-to-noise ratio, and the clip's RMS where it stands in its place. Babble is of the
    talkers that come with the package, without the clip itself.

    `words`: gives the clip's words with their times (s), where there is a voice to say them.

    Raises `AudioError` for what is no reference; `SynthesisError`.
    """
    if not isinstance(reference, str):
        return load_audio(reference)
    kind, colon, rest = reference.partition(":")
    if reference in ("noise", "white"):
        return match_noise(samples, seed)
    if reference == "silence":
        return torch.full_like(samples, 1e-9)  # exact zeros would warn of silence
    if kind in _KINDS:
        clip, sound = samples.numpy(), _noise(kind, samples.numpy(), seed)
        if colon:
            return torch.from_numpy(add_noise(clip, sound, _decibels(reference, rest)))
        return torch.from_numpy(sound * np.float32(rms(clip) or 1e-3))
    if kind == "voice" and colon:
        return _voice(reference, samples, seed, words)
    if kind == "span" and colon:
        raise AudioError(f"{reference!r} is noise on a spectrogram; what is asked for is a sound")
    if not os.path.exists(reference):
        raise _no_reference(reference)
    return load_audio(reference)


def _no_reference(reference: str) -> AudioError:
    try:
        load_audio(reference)
    except AudioError as error:
        return AudioError(f"{error} References are: {REFERENCE_HELP}.")
    return AudioError(f"no reference {reference!r}; there are {REFERENCE_HELP}")


# --- Noise ----------------------------------------------------------------------------------------


def _noise(
    kind: str, clip: Float32[np.ndarray, " sample"], seed: int
) -> Float32[np.ndarray, " sample"]:
    rng = np.random.default_rng(seed)
    if kind == "babble":
        return babble(bundled_talkers(besides=clip), len(clip), rng)
    return noise(kind, len(clip), rng)


def _decibels(reference: str, text: str) -> float:
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        kind = reference.partition(":")[0]
        raise AudioError(
            f"{reference!r}: behind {kind}: stands a signal-to-noise ratio in dB, as in {kind}:10; "
            f"got {text!r}"
        )
    return float(text)


def _with_span(reference: str, mel: Tensor, lasts: float, seed: int) -> Tensor:
    match = _SPAN.fullmatch(reference.removeprefix("span:"))
    try:
        start, end, sd = map(float, match.groups() if match else ())
    except ValueError:
        raise AudioError(
            f"{reference!r}: write span:START-END:SD, as in span:0.5-1.2:0.5, from when to when "
            "(s), and the noise's standard deviation in the spectrogram's unit"
        ) from None
    if end > lasts:
        raise AudioError(f"{reference!r}: the clip lasts {lasts:.2f} s; the span ends at {end:g} s")
    return noisy_span(mel, start, end, sd, seed)


# --- Another voice --------------------------------------------------------------------------------


def _voice(
    reference: str, samples: Clip, seed: int, words: Callable[[], Sequence[Any]] | None
) -> Clip:
    _, voice, *others = reference.split(":", 2)
    if words is None:
        raise AudioError(
            f"{reference!r} says the clip's words, each at its time, and none are known here: give "
            "a noise, silence or a recording"
        )
    timed = words()
    text = others[0] if others else " ".join("".join(word.text.split()) for word in timed)
    times = [(float(word.start), float(word.end)) for word in timed]
    clip = samples.numpy()
    made = resynthesised(text, times, len(clip), voice, seed)
    return torch.from_numpy(made * np.float32(level(clip) / level(made)))


def _words(model: Any, clip: ForcedClip) -> Sequence[Any]:
    """The clip's words with their times; the first one begins where there is sound."""
    if clip.words is not None:
        return clip.words
    timed = forced_words(model, clip)
    if not timed:
        raise NoAlignmentError("the transcript has no words to be said by another voice")
    onset = min(_onset(clip.samples), timed[0].end)
    return [_begun(timed[0], onset), *timed[1:]]


@torch.no_grad()
def forced_words(model: Any, clip: ForcedClip) -> list[Word]:
    """When each word of the transcript that a run is forced with is said, by a Whisper's attention.

    By the checkpoint's alignment heads, or, where it lists none, those that follow this clip best
    (see `find_alignment_heads`).

    Raises `NoAlignmentError` for a model without cross-attention.
    """
    heads: Any = getattr(model.generation_config, "alignment_heads", None)
    if not heads:
        heads = find_alignment_heads(model, clip.samples, clip.text, **_language(clip))
    names = [f"decoder.{layer}.cross_attn.hook_pattern" for layer in {layer for layer, _ in heads}]
    _, cache = model.run_with_cache(**clip.inputs, names_filter=names)
    patterns = [cache[f"decoder.{layer}.cross_attn.hook_pattern"][0, head] for layer, head in heads]
    n_audio = encoder_length(max(1, len(clip.samples) * FRAMES_PER_SECOND // SAMPLE_RATE))
    times = token_times(torch.stack(patterns), clip.n_prompt, n_audio, prompt_row=True)
    said = clip.inputs["tokens"][0, clip.n_prompt :].tolist()
    return combine_into_words(model.tokenizer, said, times, **_language(clip))


def _language(clip: ForcedClip) -> dict[str, Any]:
    return {"language": clip.asked["language"]} if clip.asked.get("language") else {}


def _onset(samples: Clip) -> float:
    """When the sound begins (s), to 20 ms: attention alone lets a first word begin at 0."""
    length = SAMPLE_RATE // 50
    frames = samples[: max(1, len(samples) // length) * length].split(length)
    loudness = torch.stack([frame.square().mean().sqrt() for frame in frames])
    first = (loudness > _ONSET * loudness.max()).nonzero()
    return int(first[0]) / 50 if len(first) else 0.0


def _begun(word: Word, start: float) -> Word:
    return Word(word.text, max(word.start, start), word.end, word.tokens, word.probability)
