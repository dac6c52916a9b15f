"""The sound of excerpts, and their spectrograms."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from hooked_asr.audio import SAMPLE_RATE, AudioError, load_audio, log_mel_and_mask
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.pages.png import data_uri, grey_png
from hooked_asr.timing import FRAMES_PER_SECOND

_KEPT = 64  # clips in memory
_RANGE = 2.0  # of Whisper's log-mel, 80 dB, below its loudest: the quietest that it tells apart


class Sounds:
    """Recordings as a model takes them; the last ones stay in memory."""

    def __init__(self, model: Any) -> None:
        self._extractor = model.working_extractor
        self._known: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def audio(self, path: str, span: tuple[float, float] | None) -> str:
        """A part of a recording (s), or all of it: FLAC, 16 kHz mono, as a URI.

        Raises `SAEError` for a recording that cannot be read any more.
        """
        samples = self._read(path)[0]
        if span is not None:
            samples = samples[round(span[0] * SAMPLE_RATE) : round(span[1] * SAMPLE_RATE)]
        file = io.BytesIO()
        soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE, "PCM_16", format="FLAC")
        return data_uri("audio/flac", file.getvalue())

    def spectrogram(self, path: str, span: tuple[float, float]) -> str:
        """The log-mel of a part of a recording (s): PNG as a URI, low bands at the bottom, dark
        where it is loud; 80 dB below the loudest moment of the recording are white.

        Raises `SAEError` as `audio`.
        """
        mel = self._read(path)[1]
        first, stop = (round(one * FRAMES_PER_SECOND) for one in span)
        shown = 1 - (mel[:, first : max(stop, first + 1)] - (mel.max() - _RANGE)) / _RANGE
        pixels = np.clip(np.round(255 * shown[::-1]), 0, 255).astype(np.uint8)
        return data_uri("image/png", grey_png(pixels))

    def seconds(self, path: str) -> float:
        """How long a recording is."""
        return len(self._read(path)[0]) / SAMPLE_RATE

    def _read(
        self, path: str
    ) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, "n_mels frame"]]:
        if path not in self._known:
            try:
                samples = load_audio(path)
                mel, mask = log_mel_and_mask(samples, self._extractor)
            except (AudioError, OSError) as cause:
                raise SAEError(f"an excerpt cannot be shown: {cause}") from cause
            # One frame more than are sound: the last position may hear half of it.
            self._known[path] = samples.numpy(), mel[0, :, : int(mask.sum()) + 1].numpy()
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(path)
        return self._known[path]
