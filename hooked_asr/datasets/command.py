"""Any text-to-speech program, run without a shell."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np

from hooked_asr.audio import AudioError, load_audio
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Pcm, as_pcm
from hooked_asr.nano.clips import Part
from hooked_asr.nano.espeak import Utterance

PLACES = ("voice", "out", "text", "language", "rate")
_SHOWN = 1000  # characters of what the program says on stderr, from its end


@dataclass(frozen=True)
class Command:
    """A program and its arguments, with the places `{voice}`, `{out}`, `{text}` and so on."""

    words: tuple[str, ...]

    @classmethod
    def parsed(cls, template: str) -> Command:
        """A command from one line, quoted as for a shell.

        >>> Command.parsed("piper --model '{voice}' -f {out}").words
        ('piper', '--model', '{voice}', '-f', '{out}')

        Raises `DatasetError` for a line that is not quoted to its end, has places that are not
        known, or no `{out}`.
        """
        try:
            words = tuple(shlex.split(template))
        except ValueError as error:
            raise DatasetError(f"tts={template!r} cannot be taken apart: {error}") from error
        places = re.findall(r"\{(\w+)\}", template)
        unknown = [one for one in places if one not in PLACES]
        if unknown or "out" not in places:
            raise DatasetError(
                f"tts is a command with {{out}}, the wav file to write, and may have "
                f"{', '.join(f'{{{one}}}' for one in PLACES if one != 'out')}; got {template!r}"
            )
        return cls(words)

    def say(self, part: Part) -> Utterance:
        """What the program makes of a text, at 16 kHz; it tells no times.

        Raises `DatasetError` where it fails, writes nothing, or what is no sound.
        """
        with TemporaryDirectory(prefix="tts.", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "speech.wav"
            stderr = self._run(part, path)
            return Utterance(self._read(path, part, stderr), (), ())

    def _run(self, part: Part, path: Path) -> str:
        words = self._filled(part, path)
        told = None if any("{text}" in word for word in self.words) else part.spoken
        try:
            done = subprocess.run(
                words, input=told or "", capture_output=True, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            raise DatasetError(
                f"the command cannot be run ({error}): {shlex.join(words)}"
            ) from error
        if done.returncode:
            self._fail(f"ended with status {done.returncode}", words, part, done.stderr)
        return done.stderr

    def _read(self, path: Path, part: Part, stderr: str) -> Pcm:
        words = self._filled(part, path)
        if not path.is_file() or not path.stat().st_size:
            self._fail("wrote no sound", words, part, stderr)
        try:
            samples = load_audio(path).numpy()
        except AudioError as error:
            self._fail(f"wrote what cannot be read ({error})", words, part, stderr)
        if not samples.any():
            self._fail("wrote silence", words, part, stderr)
        return as_pcm(samples.astype(np.float32))

    def _filled(self, part: Part, path: Path) -> list[str]:
        voice = part.voice
        values = (voice.speaker, str(path), part.spoken, voice.language, str(voice.rate))
        places = dict(zip(PLACES, values, strict=True))
        return [re.sub(r"\{(\w+)\}", lambda found: places[found[1]], one) for one in self.words]

    def _fail(self, how: str, words: list[str], part: Part, stderr: str) -> NoReturn:
        said = stderr.strip()[-_SHOWN:] or "nothing on stderr"
        raise DatasetError(
            f"the text-to-speech command {how}: {shlex.join(words)}; the text was "
            f"{part.spoken!r}; it said: {said}"
        )
