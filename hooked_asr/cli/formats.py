"""A transcript as text, JSON or subtitles."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from hooked_asr.cli.options import OptionError
from hooked_asr.generation import Generated, Segment, Transcript
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.monitors import ClipScores
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


@dataclass(frozen=True)
class Heard:
    """A transcript, and what monitors told of it."""

    said: Generated
    scores: list[ClipScores] = field(default_factory=list)


def check_format(model: Recogniser, chosen: Format, words: bool, monitored: bool = False) -> None:
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
    if chosen.has_times and monitored:
        raise OptionError(
            f"{chosen.value} has no place for what monitors tell: leave out --monitor, or give "
            "--format json or text"
        )


def written(audio: Path, heard: Heard, chosen: Format, times: bool) -> str:
    """A transcript in a format, its last line ended; `times`: also in text, where it has them."""
    if chosen is Format.json:
        return json_text(audio, heard) + "\n"
    said, scores = heard.said, heard.scores
    if isinstance(said, Transcript):
        if chosen is Format.srt:
            return to_srt(said.segments)
        if chosen is Format.vtt:
            return to_vtt(said.segments, words=said.words is not None)
        if times:
            return "".join(_timed(one, i, scores) for i, one in enumerate(said.segments))
    alarms = [f"{one.monitor} {_highest(one):.2f}" for one in scores if one.flagged]
    return said.text + _alarm(alarms) + "\n"


def json_text(audio: Path, heard: Heard) -> str:
    """A transcript as one line of JSON: all that is known of it, each key always there.

    With monitors there is one key more, `monitors`.
    """
    fields = {"audio": str(audio), **asdict(heard.said)}
    if heard.scores:
        fields["monitors"] = [asdict(one) for one in heard.scores]
    return json.dumps(plain(fields), ensure_ascii=False, allow_nan=False)


def _timed(segment: Segment, place: int, scores: list[ClipScores]) -> str:
    """A line for a segment, and below it one for each of its words."""
    own = [(one.monitor, one.segments[place]) for one in scores]
    alarms = [f"{name} {one.score:.2f}" for name, one in own if one.flagged]
    lines = [f"[{_period(segment)}] {segment.text.strip()}{_alarm(alarms)}"]
    lines += [f"    {_period(word)}  {word.text.strip()}" for word in segment.words or []]
    return "".join(f"{line}\n" for line in lines)


def _alarm(alarms: list[str]) -> str:
    return f"  [! {', '.join(alarms)}]" if alarms else ""


def _highest(scores: ClipScores) -> float:
    spans = (*scores.segments, *scores.windows)
    return max(one.score for one in spans if one.flagged and one.score is not None)


def _period(piece: Segment | Word) -> str:
    return f"{piece.start:6.2f} –{piece.end:7.2f}"
