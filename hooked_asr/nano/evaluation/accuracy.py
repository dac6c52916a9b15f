"""How much a model gets right: words, languages, translations, times."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tqdm import tqdm

from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.evaluation.decoding import decode, languages_heard
from hooked_asr.nano.evaluation.sets import NOISY, SEED, SNRS, TestClip, with_noise
from hooked_asr.nano.voices import LANGUAGES
from hooked_asr.speech import wer

_SECONDS_PER_TIME = 0.02


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Words wrong, missing or too many, per word said; case and punctuation do not count."""
    return wer(list(said), list(heard), _plain)


def word_error_rates(
    model: HookedWhisper, clean: Sequence[TestClip], seed: int = SEED, progress: bool = False
) -> dict[str, dict[str, float]]:
    """The word error rate of each language, in quiet and in each noise ("white 10 dB")."""
    conditions = [(kind, snr) for kind in NOISY for snr in SNRS]
    rates = {"clean": _by_language(model, clean)}
    for kind, snr in tqdm(conditions, desc="noise", leave=False, disable=not progress):
        noisy = with_noise(clean, kind, snr, seed)
        rates[noisy[0].kind] = _by_language(model, noisy)
    return rates


def language_identification(
    model: HookedWhisper, clips: Sequence[TestClip]
) -> dict[str, dict[str, float]]:
    """Of the clips in each language, the share that is taken for each."""
    heard = languages_heard(model, clips)
    shares = {}
    for language in LANGUAGES:
        taken = [one for one, clip in zip(heard, clips, strict=True) if clip.language == language]
        shares[language] = {one: taken.count(one) / len(taken) for one in LANGUAGES}
    return shares


def translations(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, dict[str, Any]]:
    """Translation into English: the share that is right to the letter, and the word error rate."""
    results = {}
    for language in [one for one in LANGUAGES if one != "en"]:
        own = [clip for clip in clips if clip.language == language and clip.translation]
        meant = [clip.translation or "" for clip in own]
        made = [one.text for one in decode(model, own, task="translate")]
        results[language] = {
            "clips": len(own),
            "exact": fmean(a == b for a, b in zip(meant, made, strict=True)),
            "wer": word_error_rate(meant, made),
        }
    return results


def timestamps(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, Any]:
    """How far (s) the first time and the last one are from where the speech begins and ends.

    `missing` is the share of clips with fewer than two times; the errors are those of the others.
    """
    first = model.to_single_token("<|0.00|>")
    starts, ends = [], []
    for clip, decoded in zip(clips, decode(model, clips, timestamps=True), strict=True):
        times = [_SECONDS_PER_TIME * (token - first) for token in decoded.tokens if token >= first]
        if len(times) >= 2:
            starts.append(abs(times[0] - clip.start))
            ends.append(abs(times[-1] - clip.end))
    return {
        "start_error": fmean(starts) if starts else None,
        "end_error": fmean(ends) if ends else None,
        "missing": 1 - len(ends) / len(clips),
    }


def _by_language(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, float]:
    heard = [one.text for one in decode(model, clips)]
    rates = {}
    for language in LANGUAGES:
        own = [i for i, clip in enumerate(clips) if clip.language == language]
        rates[language] = word_error_rate([clips[i].text for i in own], [heard[i] for i in own])
    return rates


def _plain(text: str) -> str:
    """Without case and marks, and otherwise as it is: a text normaliser would do more."""
    return "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
