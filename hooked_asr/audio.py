"""Any sound file or array -> 16 kHz mono samples -> the log-mel that a checkpoint expects."""

import difflib
import os
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from transformers import WhisperFeatureExtractor

from hooked_asr.errors import HookedASRError

__all__ = ["SAMPLE_RATE", "AudioError", "AudioSource", "load_audio", "log_mel", "match_noise"]

SAMPLE_RATE = 16_000  # Hz, of every clip that leaves this module
SILENT_RMS = 1e-3  # level of the noise that stands in for silence: -60 dBFS, where 0 dBFS is RMS 1

AudioSource = str | os.PathLike[str] | np.ndarray | Tensor

# Float samples lie in about [-1, 1]. Loud masters and resampling overshoot by a few dB; 30 dB over
# full scale is past both, and far below 8-bit integers that were cast to float unscaled.
_LOUDEST = 32.0
_INTEGER_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
_BLOCK = 8192  # frames decoded at a time
_ENDLESS_FRAMES = 2**62  # libsndfile's frame count is about 2**63 where the header states none
_ENDLESS_BYTES = 0x7FFF_0000  # sizes from here up are what a writer to a pipe leaves in its header
_CUT_SHORT = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
_OGG_CUT_SHORT = re.compile("end-of-stream|junk after the last page", re.IGNORECASE)


class AudioError(HookedASRError):
    """Audio that cannot be used: says what was asked, what was found and what to do."""


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
    features = []
    for i, clip in enumerate(source):
        name = _describe(clip) if alone else f"clip {i} ({_describe(clip)})"
        samples = _load(clip, sample_rate, name)
        _check_fits(samples, feature_extractor, name)
        # One clip at a time: no batched product can then round differently, and it is no slower.
        mel = feature_extractor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features.append(mel["input_features"])
    return torch.cat(features)


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
        samples, rate = _read_file(Path(source), sample_rate)
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


# Files


class _ForwardSoundFile(soundfile.SoundFile):
    """Reads from start to end and never seeks.

    soundfile seeks after each read, which fails, and loses the samples just read, at the end of a
    FLAC stream whose header states no length.
    """

    def seekable(self) -> bool:
        return False


def _read_file(
    path: Path, sample_rate: int | None
) -> tuple[Float32[np.ndarray, "sample channel"], int]:
    _check_is_file(path)
    with open(path, "rb") as raw:
        try:
            sound = _ForwardSoundFile(raw)
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
            _fail_unreadable(path, error)
        with sound:
            if sample_rate not in (None, sound.samplerate):
                raise AudioError(
                    f"'{path}' is sampled at {sound.samplerate} Hz, but sample_rate={sample_rate} "
                    "was given. Leave sample_rate out: the file states its own."
                )
            samples = _decode(sound, path)
            _check_complete(sound, raw, len(samples), path)
            return samples, sound.samplerate


def _check_is_file(path: Path) -> None:
    if os.path.isdir(path):
        raise AudioError(f"'{path}' is a folder: give a sound file in it.")
    if not os.path.exists(path):
        raise AudioError(f"'{path}' does not exist. {_nearby(path)}")
    if not os.path.isfile(path):
        raise AudioError(f"'{path}' is not a regular file: write it to one first.")
    if not path.stat().st_size:
        raise AudioError(f"'{path}' is empty: 0 bytes.")


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"Nor does its folder '{path.parent.absolute()}'."
    names = {name.lower(): name for name in sorted(os.listdir(path.parent))}
    close = [names[match] for match in difflib.get_close_matches(path.name.lower(), names)]
    return f"Near it: {', '.join(close)}." if close else "Nothing of a similar name is near it."


def _fail_unreadable(path: Path, error: Exception) -> NoReturn:
    reason = getattr(error, "error_string", str(error)).rstrip(".")
    raise AudioError(
        f"'{path}' ({path.stat().st_size} bytes) is not a sound file that libsndfile can read "
        f"({reason}). Convert it: {_ffmpeg(path)}"
    ) from error


def _ffmpeg(path: Path) -> str:
    return shlex.join(["ffmpeg", "-i", path.name, f"{path.stem}-converted.wav"])


def _decode(sound: soundfile.SoundFile, path: Path) -> Float32[np.ndarray, "sample channel"]:
    blocks = [np.empty((0, sound.channels), np.float32)]
    left = sound.frames
    while left > 0:
        want = min(left, _BLOCK)
        try:
            blocks.append(sound.read(want, dtype="float32", always_2d=True))
        except soundfile.SoundFileError as error:
            done = sum(map(len, blocks)) / sound.samplerate
            _fail_incomplete(path, f"decoding fails after about {done:.2f} s ({error})")
        left = left - want if len(blocks[-1]) == want else 0
    return np.concatenate(blocks)


def _check_complete(sound: soundfile.SoundFile, raw: BinaryIO, decoded: int, path: Path) -> None:
    """Refuse a file that holds less than its header promises, or more than libsndfile decoded."""
    unread = raw.read()
    length_stated = sound.frames < _ENDLESS_FRAMES
    if sound.format == "MP3":
        first_frame = _first_mp3_frame(raw)
        # Without a count libsndfile guesses the length from the file's size and first bit rate.
        length_stated = _counts_frames(first_frame)
        if _holds_mp3_frames(unread, first_frame):
            _fail_incomplete(path, f"{len(unread)} bytes of MP3 frames are left undecoded")
    if sound.format == "OGG" and _OGG_CUT_SHORT.search(sound.extra_info):
        _fail_incomplete(path, "the last page of its Ogg stream is missing or incomplete")
    if sound.format == "OGG" and b"OggS" in unread:
        _fail_incomplete(path, "only the first of several Ogg streams in it can be decoded")
    # In WAV, AIFF and AU libsndfile corrects the frame count: only its log tells of a cut.
    cut = _CUT_SHORT.search(sound.extra_info)
    if cut and int(cut[1]) < _ENDLESS_BYTES:
        _fail_incomplete(path, f"{cut[1]} bytes of samples are promised, {cut[2]} are there")
    if length_stated and decoded < sound.frames:
        promised, held = sound.frames / sound.samplerate, decoded / sound.samplerate
        _fail_incomplete(path, f"{promised:.2f} s are promised, {held:.2f} s can be decoded")


def _fail_incomplete(path: Path, what: str) -> NoReturn:
    raise AudioError(
        f"'{path}' cannot be decoded to its end: {what}. Fetch it again if it was cut short or "
        f"damaged, or convert what is there: {_ffmpeg(path)}"
    )


def _first_mp3_frame(raw: BinaryIO) -> bytes:
    """The beginning of the first MPEG frame, after any ID3v2 tag."""
    raw.seek(0)
    tag = raw.read(10)
    size = 0
    for byte in tag[6:]:
        size = size << 7 | byte & 0x7F
    raw.seek(10 + size if tag.startswith(b"ID3") else 0)
    return raw.read(64)


def _counts_frames(first_frame: bytes) -> bool:
    """Whether the first MPEG frame is a header that states the number of frames."""
    header = re.search(rb"(?:Xing|Info)\0\0\0(.)", first_frame, re.DOTALL)
    return header is not None and bool(header[1][0] & 1)


def _holds_mp3_frames(unread: bytes, first_frame: bytes) -> bool:
    """Whether sound, and not just a closing tag, follows the place where decoding stopped.

    libsndfile stops at the length that it guessed or was told, whatever follows: it would drop most
    of a variable-rate MP3 without a frame count. Every frame begins alike and has at most 1441
    bytes, so its first two bytes are far denser in sound than in anything else.
    """
    marks = unread.count(first_frame[:2]) if first_frame.startswith(b"\xff") else 0
    return marks > max(3, len(unread) // 3000)
