"""Speech from espeak-ng, in this process, with the times of its words and phones."""

from __future__ import annotations

import ctypes
import os
import shutil
from ctypes.util import find_library
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soxr
from jaxtyping import Int16

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.errors import HookedASRError

# Numbers of espeak-ng's C interface (speak_lib.h).
_SYNCHRONOUS, _PHONEME_EVENTS, _IPA, _DONT_EXIT = 2, 0x1, 0x2, 0x8000
_BY_CHARACTER, _UTF8 = 1, 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7


class SynthesisError(HookedASRError):
    """espeak-ng is missing, or cannot do what it was asked."""


@dataclass(frozen=True)
class Interval:
    """A word or a phone (in IPA), from `start` to `end` seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """What was said: 16 kHz samples, words and phones in order."""

    samples: Int16[np.ndarray, " sample"]
    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, counted from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """The synthesiser.

    Its noise is drawn from one stream in a process, and its rounding carries over from one clip to
    the next: the same clips in the same order in a fresh process are the same samples, with
    `seed` (which espeak-ng takes from 1.52 on). With `fresh`, it is as in a fresh process, whatever
    was said before in this one; not so for a system's espeak-ng, which is there only once.

    Raises `SynthesisError` where neither the `espeakng-loader` wheel nor the system has espeak-ng.
    """

    def __init__(self, seed: int = 0, fresh: bool = False) -> None:
        self._library, data = _library(fresh)
        options = _PHONEME_EVENTS | _IPA | _DONT_EXIT
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, options)
        if self.rate <= 0:
            raise SynthesisError("espeak-ng was found, but its voices were not: reinstall it")
        if hasattr(self._library, "espeak_ng_SetRandSeed"):
            self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._samples: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, float, str]] = []
        self._callback = _Callback(self._receive)  # kept: C holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def say(
        self, text: str, voice: str, rate: int = 160, pitch: int = 50, stretch: float = 1.0
    ) -> Utterance:
        """Say a text: `voice` as in "en-us+f3", `rate` in words a minute, `pitch` from 0 to 99.

        `stretch` above 1 plays it slower, and so lower, formants too: a larger speaker.

        Raises `SynthesisError` for a voice that espeak-ng lacks.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SynthesisError(
                f"espeak-ng has no voice {voice!r}; there are en-us, en-gb-x-rp, es, de, fr, … (as "
                "espeak-ng --voices lists them), each with variants such as +f3 or +m2"
            )
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._samples, self._events = [], []
        data = text.encode()
        failed = self._library.espeak_Synth(
            data, len(data) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None
        )
        if failed or not self._samples:
            raise SynthesisError(f"espeak-ng could not say {text!r} with the voice {voice!r}")
        return self._utterance(text, self.rate / stretch)

    def _receive(self, wav: Any, count: int, events: Any) -> int:
        if wav and count:
            self._samples.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != _END_OF_LIST:
            event = events[i]
            name = event.name.decode(errors="ignore") if event.type == _PHONEME else ""
            seconds = event.audio_position / 1000
            self._events.append((event.type, event.text_position, event.length, seconds, name))
            i += 1
        return 0

    def _utterance(self, text: str, rate: float) -> Utterance:
        raw = np.concatenate(self._samples)
        end = len(raw) / rate
        slower = self.rate / rate
        resampled = soxr.resample(raw.astype(np.float32), rate, SAMPLE_RATE)
        samples = resampled.round().clip(-(2**15), 2**15 - 1).astype(np.int16)
        words = [
            (text[at - 1 : at - 1 + length].strip(".,?¿!¡ "), seconds * slower)
            for kind, at, length, seconds, _ in self._events
            if kind == _WORD
        ]
        phones = [
            (name, seconds * slower)
            for kind, _, _, seconds, name in self._events
            if kind == _PHONEME
        ]
        return Utterance(samples, _intervals(words, end), _intervals(phones, end))


def _intervals(starts: list[tuple[str, float]], end: float) -> tuple[Interval, ...]:
    """Each lasts until the next begins; nameless ones (pauses) only end the one before."""
    ends = [start for _, start in starts[1:]] + [end]
    return tuple(
        Interval(text, start, stop)
        for (text, start), stop in zip(starts, ends, strict=False)
        if text and stop > start
    )


def _library(fresh: bool) -> tuple[Any, bytes | None]:
    try:
        import espeakng_loader  # the wheel: the same version everywhere

        path, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path().encode()
    except ImportError:
        path, data = find_library("espeak-ng"), None
    if not path:
        raise SynthesisError(
            "espeak-ng is not here: pip install 'hooked_asr[nano]', or install your system's "
            "espeak-ng"
        )
    library = _loaded_anew(path) if fresh and os.path.isfile(path) else ctypes.CDLL(path)
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    return library, data


def _loaded_anew(path: str) -> ctypes.CDLL:
    """A library with variables of its own, of which loading the same file again gives none."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            return ctypes.CDLL(shutil.copy(path, folder))
        except OSError as error:
            raise SynthesisError(
                f"a copy of espeak-ng cannot be run from {folder} ({error}): let TMPDIR name a "
                "folder from which programs can be"
            ) from error
