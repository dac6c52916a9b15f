"""Sounds that are not speech, of which whisper-nano is to write nothing, and how loud they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.nano.noise import NOISES, Samples, Talker, babble, noise, rms


def sound(kind: str, n_samples: int, rng: np.random.Generator, speech: Sequence[Talker]) -> Samples:
    """A sound at RMS 1, made of `speech` where it is made of any; silence is silent.

    "silence", "hiss" (faint white noise), "babble", those of `NOISES` and of `UNHEARD`.
    """
    if kind == "silence":
        return np.zeros(n_samples, np.float32)
    if kind == "babble":
        return babble(speech, n_samples, rng)
    if kind == "reversed":
        made = np.resize(speech[0][::-1], n_samples)
    elif kind in UNHEARD_NOISES:
        made = UNHEARD_NOISES[kind](n_samples, rng).astype(np.float32)
    else:
        return noise("white" if kind == "hiss" else kind, n_samples, rng)
    return made / max(rms(made), 1e-9)


def _brown(n: int, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum / np.maximum(hertz, 20), n)


def _tone(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * rng.uniform(200, 2000) * np.arange(n) / SAMPLE_RATE)


def _modulated(n: int, rng: np.random.Generator) -> np.ndarray:
    """Noise that comes and goes about as often as syllables do."""
    swell = 1 + np.sin(2 * np.pi * rng.uniform(3, 6) * np.arange(n) / SAMPLE_RATE)
    return swell * rng.standard_normal(n)


# Not in the training; nor is speech played backwards.
UNHEARD_NOISES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "brown": _brown,
    "tone": _tone,
    "modulated": _modulated,
}
UNHEARD = (*UNHEARD_NOISES, "reversed")

# Kind -> dBFS.
LEVELS: dict[str, tuple[float, ...]] = {
    "silence": (-200.0,),
    "hiss": (-75.0, -70.0, -65.0, -60.0, -55.0, -50.0),
    **dict.fromkeys((*NOISES, "babble"), (-50.0, -35.0, -20.0)),
    **dict.fromkeys(UNHEARD, (-35.0, -20.0)),
}
