"""Speech made longer or shorter, at the same pitch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

from hooked_asr.audio import SAMPLE_RATE, AudioError

_FRAME = SAMPLE_RATE * 30 // 1000  # about three periods of a low voice
_HOP = _FRAME // 2
_REACH = SAMPLE_RATE * 10 // 1000  # how far from its place a frame may be taken: a period of 100 Hz


def stretched(samples: Float32[np.ndarray, " sample"], n_samples: int) -> Float32[np.ndarray, " _"]:
    """The same sound in so many samples.

    WSOLA: frames of 30 ms are laid over each other at the new pace, each taken from where, near its
    place, the sound goes on most as it went on behind the frame before.

    Raises `AudioError` for no samples, or a length below 1.

    Source: "An overlap-add technique based on waveform similarity (WSOLA) for high quality
    time-scale modification of speech" (1993).
    """
    if not len(samples) or n_samples < 1:
        raise AudioError(f"{len(samples)} samples cannot be stretched to {n_samples}")
    if n_samples == len(samples):
        return samples.copy()
    margin = _FRAME + _REACH
    sound = np.pad(samples.astype(np.float64), 2 * margin)
    window = np.hanning(_FRAME + 1)[:-1]  # with its neighbours it adds up to 1
    n_frames = -(-n_samples // _HOP) + 1
    made = np.zeros((n_frames + 1) * _HOP)
    start = 2 * margin - _HOP  # so that the first frame is centred on the first sample
    for k in range(n_frames):
        heard = min(k * _HOP / n_samples, 1) * len(samples)
        place = 2 * margin - _HOP + round(heard)
        start = _most_alike(sound, place, start + _HOP) if k else place
        made[k * _HOP : k * _HOP + _FRAME] += window * sound[start : start + _FRAME]
    return made[_HOP : _HOP + n_samples].astype(np.float32)


def _most_alike(sound: Float[np.ndarray, " _"], place: int, following: int) -> int:
    """Where, within reach of `place`, the sound is most like the frame at `following`."""
    wanted = sound[following : following + _FRAME]
    near = sound[place - _REACH : place + _REACH + _FRAME]
    energy = np.cumsum(np.pad(near**2, (1, 0)))
    alike = np.correlate(near, wanted) / np.sqrt(energy[_FRAME:] - energy[:-_FRAME] + 1e-9)
    if not alike.any():  # silence is like anything
        return place
    return place - _REACH + int(alike.argmax())
