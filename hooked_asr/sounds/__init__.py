"""Sounds that are made: noise over a clip or in its place, and its words in another voice.

All samples are at 16 kHz, float32, full scale 1.0; the same seed gives the same samples.
"""

from hooked_asr.sounds.noise import (
    NOISES,
    add_noise,
    babble,
    bundled_talkers,
    level,
    noise,
    rms,
)
from hooked_asr.sounds.resynthesis import resynthesised
from hooked_asr.sounds.spectrogram import noisy_span
from hooked_asr.sounds.stretch import stretched

__all__ = [
    "NOISES",
    "add_noise",
    "babble",
    "bundled_talkers",
    "level",
    "noise",
    "noisy_span",
    "resynthesised",
    "rms",
    "stretched",
]
