"""Sounds that are not speech, and how loud they are beside it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from hooked_asr.audio import SAMPLE_RATE

Samples = Float32[np.ndarray, " sample"]
Talker = Float32[np.ndarray, " _"]  # each as long as it is

NOISES = ("white", "pink", "hum", "clicks")


def noise(kind: str, n_samples: int, rng: np.random.Generator) -> Samples:
    """`n_samples` of a kind of noise, at RMS 1. "clicks" are short bursts, as of a keyboard.

    Raises `KeyError` for another kind than those of `NOISES`.
    """
    made = _MAKERS[kind](n_samples, rng).astype(np.float32)
    return made / max(rms(made), 1e-9)


def add_noise(speech: Samples, sound: Samples, snr: float) -> Samples:
    """Speech with a sound in it, `snr` dB below the speech's RMS level where it is not silent."""
    level = rms(speech[np.abs(speech) > 1e-4]) if np.any(np.abs(speech) > 1e-4) else 1e-3
    return speech + sound / max(rms(sound), 1e-9) * level * 10 ** (-snr / 20)


def babble(talkers: list[Talker], n_samples: int, rng: np.random.Generator) -> Samples:
    """Several people talking at once, at RMS 1: each from some moment on, round and round."""
    mixed = np.zeros(n_samples, np.float32)
    for talker in talkers:
        start = int(rng.integers(len(talker)))
        mixed += np.resize(np.roll(talker, -start), n_samples) / max(rms(talker), 1e-9)
    return mixed / max(rms(mixed), 1e-9)


def rms(samples: Talker) -> float:
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
