"""Any sound file or array -> 16 kHz mono samples -> the log-mel that a checkpoint expects."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor
from transformers import WhisperFeatureExtractor

from hooked_asr.sound_files import AudioError, read_file

__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "AudioSource",
    "fit_length",
    "load_audio",
    "log_mel",
    "log_mel_and_mask",
    "log_mel_of_any_length",
    "match_noise",
]

SAMPLE_RATE = 16_000  # Hz, of every clip that leaves this module
SILENT_RMS = 1e-3  # level of the noise that stands in for silence: -60 dBFS, where 0 dBFS is RMS 1

AudioSource = str | os.PathLike[str] | np.ndarray | Tensor

# Float samples lie in about [-1, 1]. Loud masters and resampling overshoot by a few dB; 30 dB over
# full scale is past both, and far below 8-bit integers that were cast to float unscaled.
_LOUDEST = 32.0
_INTEGER_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}


def load_audio(source: AudioSource, sample_rate: int | None = None) -> Float[Tensor, " sample"]:
    """One clip as 16 kHz mono float32 samples on the CPU; full scale is 1.0.

    Args:
        source: A sound file (whatever libsndfile reads: wav, flac, ogg, mp3, aiff, ...; any rate,
            depth and number of channels), or samples as a numpy array or a tensor: `[sample]`,
            `[sample channel]` or `[channel sample]` (the shorter axis is the channels). Integers
            (int8, int16, int32, offset-binary uint8) are scaled by their type's range; floats are
            taken as they are. Channels are averaged. The caller's memory is never shared.
        sample_rate: Rate of an array in Hz, 16000 if not given. A file states its own.

    Raises:
        AudioError: The file is missing, a folder, unreadable, damaged or cut short, or has another
            rate than `sample_rate`; or there are no samples, NaN or infinity among them, floats
            far beyond full scale, or no way to tell which axis is the channels.

    A clip of nothing but zeros is valid and warns. That a file was cut short is seen in WAV, AIFF,
    AU, FLAC, Ogg and those MP3s (most) whose first frame counts the others; elsewhere it is not.

    >>> load_audio(np.array([0, 16384, -32768], dtype=np.int16))
    tensor([ 0.0000,  0.5000, -1.0000])
    >>> load_audio(np.ones((2, 8000)), sample_rate=8000).shape
    torch.Size([16000])
    """
    return _load(source, sample_rate, _describe(source))


def log_mel(
    source: AudioSource | Sequence[AudioSource],
    feature_extractor: WhisperFeatureExtractor,
    sample_rate: int | None = None,
) -> Float[Tensor, "batch n_mels frame"]:
    """The log-mel spectrogram of each clip, padded with silence to the extractor's window.

    As `log_mel_and_mask`, without the mask.
    """
    return log_mel_and_mask(source, feature_extractor, sample_rate)[0]


def log_mel_and_mask(
    source: AudioSource | Sequence[AudioSource],
    feature_extractor: WhisperFeatureExtractor,
    sample_rate: int | None = None,
) -> tuple[Float[Tensor, "batch n_mels frame"], Int[Tensor, "batch frame"]]:
    """The log-mel spectrogram of each clip, padded, and which of its frames are the clip's (1).

    Bit for bit what `feature_extractor` gives for each clip alone, whatever else is in the batch.

    Args:
        source: One clip as `load_audio` takes it, or a list or tuple of them. A two-dimensional
            array is one clip with channels, not a batch.
        feature_extractor: The checkpoint's own; its window is normally 30 s, 3000 frames of 10 ms.
        sample_rate: Rate in Hz of the clips that are arrays.

    Raises:
        AudioError: As `load_audio`; no clips; or a clip longer than the window.
    """
    if alone := isinstance(source, str | os.PathLike | np.ndarray | Tensor):
        source = [source]
    if not source:
        raise AudioError("log_mel was given a list of no clips: give at least one.")
    features, masks = [], []
    for i, clip in enumerate(source):
        name = _describe(clip) if alone else f"clip {i} ({_describe(clip)})"
        samples = _load(clip, sample_rate, name)
        _check_fits(samples, feature_extractor, name)
        mel, mask = _features(samples, feature_extractor)
        features.append(mel)
        masks.append(mask)
    return torch.cat(features), torch.cat(masks)


def log_mel_of_any_length(
    source: AudioSource, feature_extractor: WhisperFeatureExtractor, sample_rate: int | None = None
) -> tuple[Float[Tensor, "n_mels frame"], int]:
    """The log-mel spectrogram of one clip, and how many of its frames are sound.

    A clip shorter than the extractor's window is padded with silence to it; a longer one is as
    long as it is, its levels relative to the loudest moment of the whole.

    Raises:
        AudioError: As `load_audio`.
    """
    samples = _load(source, sample_rate, _describe(source))
    longer = len(samples) > feature_extractor.n_samples
    whole = {"truncation": False, "padding": "longest"} if longer else {}
    mel, mask = _features(samples, feature_extractor, **whole)
    return mel[0], mel.shape[-1] if longer else int(mask.sum())


def _features(
    samples: Float[Tensor, " sample"], feature_extractor: WhisperFeatureExtractor, **how: Any
) -> tuple[Float[Tensor, "one n_mels frame"], Int[Tensor, "one _"]]:
    """One clip at a time: no batched product can then round differently, and it is no slower."""
    made = feature_extractor(
        samples.numpy(),
        sampling_rate=SAMPLE_RATE,
        return_tensors="pt",
        return_attention_mask=True,
        **how,
    )
    return made["input_features"], made["attention_mask"].long()


def match_noise(audio: Float[Tensor, " sample"], seed: int = 0) -> Float[Tensor, " sample"]:
    """White Gaussian noise of the clip's length and RMS level: a reference input for patching.

    The same seed gives the same noise. Silence is given noise of -60 dBFS (RMS 0.001).

    >>> noise = match_noise(torch.tensor([0.3, -0.3, 0.3, -0.3]))
    >>> round(noise.square().mean().sqrt().item(), 6)
    0.3
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(audio.shape, generator=generator, dtype=torch.float64)
    level = audio.double().square().mean().sqrt().item() or SILENT_RMS
    return (noise * (level / noise.square().mean().sqrt())).to(audio)


def fit_length(audio: Float[Tensor, " sample"], n_samples: int) -> Float[Tensor, " _"]:
    """A clip cut, or padded behind with silence, to so many samples.

    >>> fit_length(torch.tensor([0.5, 0.25]), 3), fit_length(torch.tensor([0.5, 0.25]), 1)
    (tensor([0.5000, 0.2500, 0.0000]), tensor([0.5000]))
    """
    return torch.nn.functional.pad(audio, (0, n_samples - len(audio)))


def _check_fits(
    samples: Float[Tensor, " sample"], feature_extractor: WhisperFeatureExtractor, name: str
) -> None:
    window = feature_extractor.n_samples
    if len(samples) <= window:
        return
    seconds = window / feature_extractor.sampling_rate
    raise AudioError(
        f"{name} lasts {len(samples) / SAMPLE_RATE:.2f} s ({len(samples)} samples at 16 kHz), but "
        f"the model's window is {seconds:g} s ({window} samples). Cut it into windows of at most "
        f"{seconds:g} s."
    )


# From any source to mono 16 kHz


def _load(source: AudioSource, sample_rate: int | None, name: str) -> Float32[Tensor, " sample"]:
    if sample_rate is not None and not sample_rate > 0:
        raise AudioError(f"{name}: sample_rate is {sample_rate}, but a rate is a number of Hz > 0.")
    if isinstance(source, str | os.PathLike):
        samples, rate = read_file(Path(source), sample_rate)
    elif isinstance(source, np.ndarray | Tensor):
        samples, rate = _channels_last(_as_numpy(source), name), sample_rate or SAMPLE_RATE
    else:
        raise AudioError(f"Expected a path, a numpy array or a tensor, found {name}.")
    if not samples.size:
        raise AudioError(f"{name} is empty: it has 0 samples.")
    mono = _full_scale(samples, name).mean(axis=1)
    if not mono.any():
        warnings.warn(f"{name} is silent: every sample is 0 (channels averaged).", stacklevel=3)
    return torch.from_numpy(_resample(mono, rate, name))


def _describe(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    if isinstance(source, np.ndarray | Tensor):
        return f"{type(source).__name__} of {source.dtype}, shape {tuple(source.shape)}"
    return f"{source!r:.60} of type {type(source).__name__}"


def _as_numpy(source: np.ndarray | Tensor) -> Shaped[np.ndarray, "..."]:
    if isinstance(source, np.ndarray):
        return source
    source = source.detach().cpu()
    return (source.float() if source.dtype == torch.bfloat16 else source).numpy()


def _channels_last(
    samples: Shaped[np.ndarray, "..."], name: str
) -> Shaped[np.ndarray, "sample channel"]:
    if samples.ndim == 1:
        return samples[:, None]
    if samples.ndim != 2:
        raise AudioError(f"{name}: expected [sample], [sample channel] or [channel sample].")
    rows, columns = samples.shape
    if rows == columns > 1:
        raise AudioError(f"{name}: either axis could be the channels. Average them first.")
    return samples.T if rows < columns else samples


def _full_scale(
    samples: Shaped[np.ndarray, "sample channel"], name: str
) -> Float32[np.ndarray, "sample channel"]:
    """The samples as float32 with full scale at 1.0."""
    if samples.dtype.kind == "f":
        _check_floats(samples, name)
        return samples.astype(np.float32)
    # Wider integers are refused: int64 is what a list of 16-bit samples becomes, and scaled by its
    # own range that would be silence.
    scale = _INTEGER_SCALE.get(samples.dtype.name)
    if scale is None:
        known = ", ".join(_INTEGER_SCALE)
        raise AudioError(f"{name}: samples must be floats in [-1, 1], or {known}: convert them.")
    offset = scale if samples.dtype.kind == "u" else 0.0
    return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


def _check_floats(samples: Shaped[np.ndarray, "sample channel"], name: str) -> None:
    bad = samples.size - np.isfinite(samples).sum()
    if bad:
        raise AudioError(
            f"{name}: {bad} of {samples.size} samples are NaN or infinite. Cut them out."
        )
    peak = np.abs(samples).max()
    if peak > _LOUDEST:
        raise AudioError(
            f"{name}: float samples go up to {peak:g}, where full scale is 1.0. If they are "
            "integers cast to float, divide by their range (32768 for 16 bits)."
        )


def _resample(
    mono: Float32[np.ndarray, " frame"], rate: int, name: str
) -> Float32[np.ndarray, " sample"]:
    if rate == SAMPLE_RATE:
        return mono
    # HQ errs by less than a 16-bit step, and its pass band is flat to 0.01 dB up to 0.91 of the
    # lower Nyquist frequency. VHQ has the same pass band and takes twice as long.
    resampled = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not resampled.size:
        raise AudioError(f"{name}: {mono.size} samples at {rate} Hz are none at {SAMPLE_RATE} Hz.")
    return resampled
