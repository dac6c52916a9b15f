"""Reading sound files whole, or saying why not: libsndfile itself is silent about many cuts."""

import difflib
import os
import re
import shlex
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import soundfile
from jaxtyping import Float32

from hooked_asr.errors import HookedASRError

_BLOCK = 8192  # frames decoded at a time
_ENDLESS_FRAMES = 2**62  # libsndfile's frame count is about 2**63 where the header states none
_ENDLESS_BYTES = 0x7FFF_0000  # sizes from here up are what a writer to a pipe leaves in its header
_CUT_SHORT = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
_OGG_CUT_SHORT = re.compile("end-of-stream|junk after the last page", re.IGNORECASE)


class AudioError(HookedASRError):
    """Audio that cannot be used: says what was asked, what was found and what to do."""


class _ForwardSoundFile(soundfile.SoundFile):
    """Reads from start to end and never seeks.

    soundfile seeks after each read, which fails, and loses the samples just read, at the end of a
    FLAC stream whose header states no length.
    """

    def seekable(self) -> bool:
        return False


def read_file(
    path: Path, sample_rate: int | None
) -> tuple[Float32[np.ndarray, "sample channel"], int]:
    """All samples of a sound file and its rate in Hz; refuses a file that is not whole.

    Raises `AudioError` for what is no sound file, has another rate than `sample_rate`, or cannot be
    decoded to its end.
    """
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
