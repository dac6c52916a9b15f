"""A transcript as text, JSON or subtitles."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from hooked_asr.cli.options import OptionError
from hooked_asr.generation import Generated, Segment, Transcript
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.patching.saving import plain
from hooked_asr.speech import Word, to_srt, to_vtt


class Format(str, Enum):
    """How transcripts are written."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"

    @property
    def suffix(self) -> str:
        return ".txt" if self is Format.text else f".{self.value}"

    @property
    def has_times(self) -> bool:
        """Whether it is nothing without times."""
        return self in (Format.srt, Format.vtt)


def check_format(model: Recogniser, chosen: Format, words: bool) -> None:
    """Raises `OptionError` for a format that has no place for what the model gives."""
    if chosen.has_times and not isinstance(model, HookedWhisper):
        raise OptionError(
            f"{type(model).__name__} tells no times, and --format {chosen.value} is made of them: "
            "give --format text or --format json"
        )
    if chosen is Format.srt and words:
        raise OptionError(
            "srt has no times of words: leave out --words, or give --format vtt, json or text"
        )


def written(audio: Path, heard: Generated, chosen: Format, times: bool) -> str:
    """A transcript in a format, its last line ended; `times`: also in text, where it has them."""
    if chosen is Format.json:
        return json_text(audio, heard) + "\n"
    if isinstance(heard, Transcript):
        if chosen is Format.srt:
            return to_srt(heard.segments)
        if chosen is Format.vtt:
            return to_vtt(heard.segments, words=heard.words is not None)
        if times:
            return "".join(map(_timed, heard.segments))
    return heard.text + "\n"


def json_text(audio: Path, heard: Generated) -> str:
    """A transcript as one line of JSON: all that is known of it, each key always there."""
    fields = {"audio": str(audio), **asdict(heard)}
    return json.dumps(plain(fields), ensure_ascii=False, allow_nan=False)


def _timed(segment: Segment) -> str:
    """A line for a segment, and below it one for each of its words."""
    lines = [f"[{_period(segment)}] {segment.text.strip()}"]
    lines += [f"    {_period(word)}  {word.text.strip()}" for word in segment.words or []]
    return "".join(f"{line}\n" for line in lines)


def _period(piece: Segment | Word) -> str:
    return f"{piece.start:6.2f} –{piece.end:7.2f}"
