"""Noise on a stretch of a spectrogram."""

from __future__ import annotations

import torch

from hooked_asr.audio import AudioError
from hooked_asr.shapes import Mel
from hooked_asr.timing import FRAMES_PER_SECOND, hearing


def noisy_span(mel: Mel, start_s: float, end_s: float, sd: float, seed: int = 0) -> Mel:
    """Log-mel frames with Gaussian noise added from one moment to another (s), and nowhere else.

    `sd`: its standard deviation, in the spectrogram's own unit; in Whisper's, 1.0 is 40 dB.
    Every clip `[clip n_mels frame]` is given noise of its own. Frames outside are the same to the
    bit.

    Raises `AudioError` for a stretch that is empty or leaves the frames, or an `sd` not above 0.

    Source: corrupting the input of some positions, "Locating and Editing Factual Associations in
    GPT" (2022), section 2.1, there on embeddings.
    """
    lasts = mel.shape[2] / FRAMES_PER_SECOND
    if not 0 <= start_s < end_s <= lasts:
        raise AudioError(
            f"the spectrogram lasts from 0 to {lasts:g} s; got a span from {start_s:g} to "
            f"{end_s:g} s"
        )
    if not 0 < sd < float("inf"):
        raise AudioError(f"the noise's standard deviation is a number above 0; got {sd:g}")
    span = hearing(start_s, end_s, "frame")
    shape = (*mel.shape[:2], len(span))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    noisy = mel.clone()
    noisy[:, :, span.start : span.stop] += (sd * noise).to(mel)
    return noisy
