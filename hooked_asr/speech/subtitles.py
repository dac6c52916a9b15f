"""Segments with times into subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from hooked_asr.errors import HookedASRError


class SubtitleError(HookedASRError):
    """Times that no subtitle can have."""


@runtime_checkable
class Timed(Protocol):
    """A piece of a transcript with its time, in seconds."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def text(self) -> str: ...


def to_srt(segments: Sequence[Timed]) -> str:
    """The segments as a SubRip file: numbered cues, with times to the millisecond.

    Segments without text are left out, and so are empty lines, which would end a cue. SubRip has no
    escapes: an arrow "-->" in the text becomes "->", as in OpenAI's own.

    Raises `SubtitleError` for times that are negative or NaN, or an end before its start.

    >>> from hooked_asr.speech import Word
    >>> print(to_srt([Word(" Hello there.", 0.0, 1.25, ())]), end="")
    1
    00:00:00,000 --> 00:00:01,250
    Hello there.
    <BLANKLINE>
    """
    cues = [
        f"{number}\n{_period(segment, ',')}\n{text.replace('-->', '->')}\n\n"
        for number, (segment, text) in enumerate(_with_text(segments), start=1)
    ]
    return "".join(cues)


def to_vtt(segments: Sequence[Timed], words: bool = False) -> str:
    """The segments as a WebVTT file; see `to_srt` for what is left out, and what is raised.

    `words`: put the time of each word before it, where a segment has `words` (as from
    `combine_into_words`, each with the space before it in its text): players show which are
    already said. "&", "<" and ">" are escaped, and with them arrows.

    >>> from types import SimpleNamespace
    >>> from hooked_asr.speech import Word
    >>> said = [Word(" Yes", 0.0, 0.5, ()), Word(" & no", 0.5, 0.9, ())]
    >>> segment = SimpleNamespace(start=0.0, end=1.0, text=" Yes & no", words=said)
    >>> print(to_vtt([segment], words=True), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.000 --> 00:00:01.000
    Yes <00:00:00.500>&amp; no
    <BLANKLINE>
    """
    cues = ["WEBVTT\n\n"]
    for segment, text in _with_text(segments):
        spoken = getattr(segment, "words", None) if words else None
        payload = _timed_words(segment, spoken) if spoken else _escaped(text)
        cues.append(f"{_period(segment, '.')}\n{payload}\n\n")
    return "".join(cues)


def _with_text(segments: Sequence[Timed]) -> Iterator[tuple[Timed, str]]:
    for segment in segments:
        if text := _lines(segment.text):
            yield segment, text


def _lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _timed_words(segment: Timed, words: Sequence[Timed]) -> str:
    """The words, each behind its time; without it where it would not be later than the one before,
    or not within the cue, as the format demands.
    """
    last, end = _milliseconds(segment.start), _milliseconds(segment.end)
    payload = ""
    for word in words:
        text = " ".join(word.text.split())
        space = " " if payload and word.text[:1].isspace() else ""
        time = _milliseconds(word.start)
        if text and last < time < end:
            payload += f"{space}<{_clock(time, '.')}>{_escaped(text)}"
            last = time
        else:
            payload += space + _escaped(text)
    return payload


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _period(segment: Timed, point: str) -> str:
    start, end = _milliseconds(segment.start), _milliseconds(segment.end)
    if end < start:
        raise SubtitleError(
            f"a segment ends ({segment.end:g} s) before it starts ({segment.start:g} s): "
            f"{segment.text!r:.60}"
        )
    return f"{_clock(start, point)} --> {_clock(end, point)}"


def _milliseconds(seconds: float) -> int:
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise SubtitleError(f"a subtitle's time is a number of seconds from 0 on, not {seconds}")
    return round(1000 * seconds)


def _clock(milliseconds: int, point: str) -> str:
    """Hours, minutes, seconds and milliseconds.

    >>> _clock(3_723_004, ",")
    '01:02:03,004'
    """
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
