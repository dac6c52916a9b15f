"""Sounds that are not speech, or too much of it, and how loud they are beside a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hooked_asr.audio import SAMPLE_RATE, AudioError, load_audio

Samples = Float32[np.ndarray, " sample"]
Talker = Float32[np.ndarray, " _"]  # each as long as it is

NOISES = ("white", "pink", "hum", "clicks")

_SILENT = 1e-4  # samples no louder than this are pauses, and no part of the speech's level
_CLIPS = Path(__file__).parent.parent / "nano" / "audio"
_TALKERS = ("english", "scottish", "spanish", "german", "likely")  # five voices, three languages


def noise(kind: str, n_samples: int, rng: np.random.Generator) -> Samples:
    """`n_samples` of a kind of noise, at RMS 1.

    "white"; "pink" (-3 dB an octave from 20 Hz on); "hum", of a mains or a motor; "clicks", short
    bursts as of a keyboard. Raises `AudioError` for another kind.
    """
    if kind not in _MAKERS:
        raise AudioError(f"no noise {kind!r}; there are {', '.join(NOISES)}")
    made = _MAKERS[kind](n_samples, rng).astype(np.float32)
    return made / max(rms(made), 1e-9)


def add_noise(speech: Samples, sound: Samples, snr: float) -> Samples:
    """Speech with a sound in it, `snr` dB below the speech's `level`.

    >>> speech, sound = np.full(4, 0.5, np.float32), np.array([1, -1, 1, -1], np.float32)
    >>> add_noise(speech, sound, snr=20.0).round(4)
    array([0.55, 0.45, 0.55, 0.45], dtype=float32)
    """
    return speech + sound / max(rms(sound), 1e-9) * level(speech) * 10 ** (-snr / 20)


def babble(talkers: Sequence[Talker], n_samples: int, rng: np.random.Generator) -> Samples:
    """Several people talking at once, at RMS 1: each from some moment on, round and round.

    `talkers`: recordings of any length, such as `bundled_talkers`; each is made as loud as the
    others.
    """
    mixed = np.zeros(n_samples, np.float32)
    for talker in talkers:
        start = int(rng.integers(len(talker)))
        mixed += np.resize(np.roll(talker, -start), n_samples) / max(rms(talker), 1e-9)
    return mixed / max(rms(mixed), 1e-9)


def bundled_talkers(besides: Samples | None = None) -> list[Talker]:
    """Five synthetic voices in English, Spanish and German, which come with the package.

    `besides`: a clip that is not to be among them.
    """
    spoken = [load_audio(_CLIPS / f"{name}.flac").numpy() for name in _TALKERS]
    return [one for one in spoken if besides is None or not np.array_equal(one, besides)]


def level(speech: Talker) -> float:
    """RMS of a clip where it is not silent: pauses do not make it count as quieter.

    Samples above 1e-4 (-80 dBFS) are not silent; a clip of none others has a level of 0.001.
    """
    heard = np.abs(speech) > _SILENT
    return rms(speech[heard]) if np.any(heard) else 1e-3


def rms(samples: Talker) -> float:
    """Root mean square, 0 for no samples."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _white(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(n)


def _pink(n: int, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 20)), n)


def _hum(n: int, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(n) / SAMPLE_RATE
    base = rng.uniform(45, 180)
    partials = [rng.uniform(0.1, 1) * np.sin(2 * np.pi * base * k * seconds) for k in range(1, 9)]
    return np.sum(partials, axis=0) + 0.05 * rng.standard_normal(n)


def _clicks(n: int, rng: np.random.Generator) -> np.ndarray:
    sound = 0.01 * rng.standard_normal(n)
    burst = np.exp(-np.arange(800) / 120)
    for start in rng.integers(0, max(n - 800, 1), size=max(int(n / SAMPLE_RATE * 5), 1)):
        length = min(800, n - start)
        sound[start : start + length] += (burst * rng.standard_normal(800))[:length]
    return sound


_MAKERS = {"white": _white, "pink": _pink, "hum": _hum, "clicks": _clicks}
