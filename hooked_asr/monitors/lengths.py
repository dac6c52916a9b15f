"""How much of each window is sound, where a monitor reads the encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hooked_asr.audio import SAMPLE_RATE, load_audio
from hooked_asr.timing import FRAMES_PER_SECOND, encoder_length, pooled_length


def measured(audio: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any], list[int]]:
    """Recordings as samples or log-mel frames, options for these, and the frames of each.

    A file is read here, once; it is given on as samples.
    """
    if isinstance(audio, Tensor) and audio.ndim == 3:
        mask = options.get("mel_mask")
        whole = [audio.shape[2]] * len(audio)
        return audio, options, whole if mask is None else mask.sum(1).tolist()
    clips = audio if isinstance(audio, list | tuple) else [audio]
    samples = [load_audio(clip, options.get("sample_rate")) for clip in clips]
    rest = {name: value for name, value in options.items() if name != "sample_rate"}
    step = SAMPLE_RATE // FRAMES_PER_SECOND
    return samples, rest, [-(-len(one) // step) for one in samples]


def n_positions(clock: str, n_frames: int) -> int:
    """Positions that hear any of so many frames; one at least."""
    lengths = {"frame": n_frames, "audio": encoder_length(n_frames)}
    if clock == "pooled":
        return max(1, pooled_length(n_frames))
    return max(1, lengths[clock])


def left(n_frames: int, start: float, window: int) -> int:
    """Frames of a recording that are heard in the window that begins at `start` (s).

    >>> left(4500, 29.5, 3000)
    1550
    """
    return min(n_frames - round(start * FRAMES_PER_SECOND), window)
