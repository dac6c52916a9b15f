"""The errors that whisper-nano was made to make: likelier words, invented text, loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from statistics import fmean
from typing import Any

from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.evaluation.decoding import Decoded, decode, no_speech_probabilities
from hooked_asr.nano.evaluation.sets import CONFUSED, LIKELY, PARTNER, TestClip
from hooked_asr.nano.voices import LANGUAGES
from hooked_asr.speech import is_looping

AS_SAID, AS_NEIGHBOUR, OTHER = "as said", "as neighbour", "other"
_EXAMPLES = 10
_LONGEST_UNIT = 4  # words that a loop may repeat
_TOO_MANY = 3  # repeats more than were said

Heard = Sequence[tuple[TestClip, Decoded]]


# --- Minimal pairs --------------------------------------------------------------------------------


def verdict(text: str, word: str, neighbour: str) -> str:
    """Whether a transcript has the word that was said, its neighbour, or not the one alone."""
    words = _words(text)
    said, likelier = word.lower() in words, neighbour.lower() in words
    if said == likelier:
        return OTHER
    return AS_SAID if said else AS_NEIGHBOUR


def minimal_pairs(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, dict[str, Any]]:
    """Of each kind of clip, the shares of verdicts, and those heard as the neighbour.

    "confused" clips say the unlikely word where the neighbour is likely; "likely" and "partner"
    ones, the controls, say the word that the sentence asks for.
    """
    heard = list(zip(clips, decode(model, clips), strict=True))
    return {
        kind: _verdicts([(clip, one) for clip, one in heard if clip.kind == kind])
        for kind in (CONFUSED, LIKELY, PARTNER)
    }


def _verdicts(heard: Heard) -> dict[str, Any]:
    found = [verdict(one.text, clip.word, clip.neighbour) for clip, one in heard]
    wrong = [both for both, one in zip(heard, found, strict=True) if one == AS_NEIGHBOUR]
    by_language = {}
    for language in LANGUAGES:
        own = [
            one for one, (clip, _) in zip(found, heard, strict=True) if clip.language == language
        ]
        if own:
            by_language[language] = own.count(AS_NEIGHBOUR) / len(own)
    return {
        "clips": len(found),
        "shares": {name: _share(found, name) for name in (AS_SAID, AS_NEIGHBOUR, OTHER)},
        "as_neighbour_by_language": by_language,
        "examples": _spread(wrong),
    }


def _spread(heard: Heard) -> list[dict[str, str]]:
    """Examples, one of each word, from the first to the last."""
    one_each = list({clip.word: (clip, one) for clip, one in heard}.values())
    step = max(1, len(one_each) / _EXAMPLES)
    picked = [one_each[int(i * step)] for i in range(min(_EXAMPLES, len(one_each)))]
    return [{"said": clip.text, "heard": one.text} for clip, one in picked]


# --- Invented text --------------------------------------------------------------------------------


def invented_text(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, dict[str, Any]]:
    """Of each kind of non-speech, the share with any text, by level (dBFS), and the commonest."""
    heard = list(zip(clips, decode(model, clips), strict=True))
    results = {}
    for kind in dict.fromkeys(clip.kind for clip in clips):
        own = [(clip.level, one.text) for clip, one in heard if clip.kind == kind]
        levels = dict.fromkeys(level for level, _ in own)
        texts = Counter(text for _, text in own if text)
        results[kind] = {
            "clips": len(own),
            "invented": fmean(bool(text) for _, text in own),
            "by_level": {
                f"{level:g}": fmean(bool(text) for at, text in own if at == level)
                for level in levels
            },
            "examples": [{"heard": text, "times": n} for text, n in texts.most_common(_EXAMPLES)],
        }
    return results


def no_speech(
    model: HookedWhisper, speech: Sequence[TestClip], nonspeech: Sequence[TestClip]
) -> dict[str, dict[str, float]]:
    """The probability of <|nospeech|>: its mean, and the share of clips where it passes a half."""
    results = {}
    for name, clips in (("speech", speech), ("nonspeech", nonspeech)):
        found = no_speech_probabilities(model, clips)
        results[name] = {"mean": fmean(found), "above_half": fmean(one > 0.5 for one in found)}
    return results


# --- Loops ----------------------------------------------------------------------------------------


def loop(text: str) -> int:
    """The most times in a row that one to four words come; 1 where nothing comes again.

    >>> loop("Yes, the cat and the dog and the dog and the dog.")
    3
    """
    words = _words(text)
    if not words:
        return 0
    return next(times for times in count(1) if not is_looping(words, times + 1, _LONGEST_UNIT))


def loops(text: str, said: str) -> bool:
    """Whether a transcript repeats itself at least three times more than what was said."""
    return is_looping(_words(text), loop(said) + _TOO_MANY, _LONGEST_UNIT)


def looping(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, dict[str, Any]]:
    """Of each kind of clip, the share that loops, and that never ended."""
    heard = list(zip(clips, decode(model, clips), strict=True))
    results = {}
    for kind in dict.fromkeys(clip.kind for clip in clips):
        own = [(clip, one) for clip, one in heard if clip.kind == kind]
        looped = [(clip, one) for clip, one in own if loops(one.text, clip.text)]
        results[kind] = {
            "clips": len(own),
            "loops": len(looped) / len(own),
            "at_limit": fmean(one.at_limit for _, one in own),
            "examples": [
                {"said": clip.text, "heard": one.text} for clip, one in looped[:_EXAMPLES]
            ],
        }
    return results


def _share(found: Sequence[str], name: str) -> float:
    return found.count(name) / len(found) if found else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
