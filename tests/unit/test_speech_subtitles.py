"""Subtitle files that players can read, whatever is said in them."""

import html
import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_asr.speech import SubtitleError, Word, to_srt, to_vtt


@dataclass(frozen=True)
class Segment:
    start: float
    end: float
    text: str
    words: list[Word] = field(default_factory=list)


def cues(file):
    """The blocks between empty lines."""
    return [block for block in file.split("\n\n") if block]


def test_srt():
    file = to_srt([Segment(0.0, 2.5, " Yes."), Segment(3661.0404, 7325.9996, " No.")])
    assert file == (
        "1\n00:00:00,000 --> 00:00:02,500\nYes.\n\n2\n01:01:01,040 --> 02:02:06,000\nNo.\n\n"
    )


def test_vtt():
    file = to_vtt([Segment(0.0, 2.5, " Yes."), Segment(360000.0, 360000.5, " No.")])
    assert file == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nYes.\n\n100:00:00.000 --> 100:00:00.500\nNo.\n\n"
    )


def test_no_segments():
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n\n"


def test_segments_without_text_are_left_out_and_not_counted():
    segments = [Segment(0.0, 1.0, "  \n "), Segment(1.0, 2.0, "a"), Segment(2.0, 3.0, "")]
    assert cues(to_srt(segments)) == ["1\n00:00:01,000 --> 00:00:02,000\na"]
    assert len(cues(to_vtt(segments))) == 2


def test_several_lines_stay_one_cue():
    segment = Segment(0.0, 1.0, "\n one \r\n\r\n two\n\n")
    assert cues(to_srt([segment]))[0].endswith("\none\ntwo")
    assert cues(to_vtt([segment]))[1].endswith("\none\ntwo")


def test_marks_that_mean_something_to_players():
    segment = Segment(0.0, 1.0, "a --> b <i> & co")
    assert "a -> b <i> & co" in to_srt([segment])
    assert "a --&gt; b &lt;i&gt; &amp; co" in to_vtt([segment])


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_gives_a_file_that_parts_into_its_cues(texts):
    segments = [Segment(i / 2, i / 2 + 0.5, text) for i, text in enumerate(texts)]
    spoken = [text for text in texts if text.strip()]
    srt, vtt = cues(to_srt(segments)), cues(to_vtt(segments))[1:]
    assert len(srt) == len(vtt) == len(spoken)
    for number, (cue, other, text) in enumerate(zip(srt, vtt, spoken, strict=True), start=1):
        assert cue.startswith(f"{number}\n")
        assert cue.count("-->") == other.count("-->") == 1
        said = html.unescape(other.split("\n", 1)[1])
        assert said.split() == text.split()


def words(*timed):
    return [Word(text, start, end, ()) for text, start, end in timed]


def test_words_have_their_times():
    spoken = words((" So", 1.0, 1.2), (" it's", 1.2, 1.5), (" <me>.", 1.5, 2.0))
    segment = Segment(1.0, 2.0, " So it's <me>.", spoken)
    payload = cues(to_vtt([segment], words=True))[1].splitlines()[1]
    assert payload == "So <00:00:01.200>it's <00:00:01.500>&lt;me&gt;."
    assert "<00" not in to_vtt([segment])


def test_words_without_spaces_are_not_parted():
    spoken = words(("你", 0.0, 0.5), ("好", 0.5, 1.0))
    file = to_vtt([Segment(0.0, 1.0, "你好", spoken)], words=True)
    assert "你<00:00:00.500>好\n" in file


def test_a_segment_without_words_keeps_its_text():
    assert "\nYes\n" in to_vtt([Segment(0.0, 1.0, "Yes")], words=True)
    assert "\nYes\n" in to_vtt(words((" Yes", 0.0, 1.0)), words=True)


@given(st.lists(st.floats(0, 3, allow_nan=False), min_size=1, max_size=8))
def test_times_of_words_rise_within_their_cue(starts):
    spoken = words(*((f" w{i}", start, start) for i, start in enumerate(starts)))
    segment = Segment(0.5, 2.5, "".join(word.text for word in spoken), spoken)
    payload = cues(to_vtt([segment], words=True))[1].splitlines()[1]
    times = [float(time) for time in re.findall(r"<00:00:(\d\d\.\d{3})>", payload)]
    assert all(0.5 < time < 2.5 for time in times)
    assert times == sorted(set(times))
    assert re.sub("<.*?>", "", payload) == segment.text.strip()


@pytest.mark.parametrize("write", [to_srt, to_vtt])
@pytest.mark.parametrize(
    ("start", "end"), [(-0.1, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))]
)
def test_times_that_no_cue_can_have_are_refused(write, start, end):
    with pytest.raises(SubtitleError):
        write([Segment(start, end, "a")])
