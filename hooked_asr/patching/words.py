"""Whether a recogniser writes the word that was said, or one that sounds alike and is likelier."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hooked_asr.audio import load_audio
from hooked_asr.errors import HookedASRError
from hooked_asr.long_work import work_through
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.patching.listening import Listening
from hooked_asr.processes import Process
from hooked_asr.speech import language_code, normaliser
from hooked_asr.weights.fingerprint import computed_with

SAID, NEIGHBOUR, OTHER = "said", "neighbour", "other"
VERDICTS = (SAID, NEIGHBOUR, OTHER)


class WordError(HookedASRError):
    """Recordings whose words cannot be compared as asked."""


@dataclass(frozen=True)
class HeardWord:
    """A recording of a sentence with a word that has a neighbour, and what is heard in it.

    - `text`: what is truly said; `word`: of it, the word in question; `neighbour`: the other one.
    - `heard`, `tokens`: the transcript; `verdict`: "said" if it has the word and not the neighbour,
      "neighbour" the other way round, otherwise "other".
    - `asked`: how the model was asked (its language, or prompt).
    """

    id: str
    audio: str
    text: str
    word: str
    neighbour: str
    heard: str
    tokens: list[int]
    verdict: str
    language: str = "en"
    group: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    def verdict_on(self, heard: str) -> str:
        """The verdict on another transcript of it."""
        return verdict(heard, self.word, self.neighbour, self.language)


@torch.no_grad()
def hear_words(
    model: Any,
    clips: Clips,
    *,
    word: str = "word",
    neighbour: str = "neighbour",
    out: str | os.PathLike[str] | None = None,
    max_new_tokens: int | None = None,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> list[HeardWord]:
    """Transcribe recordings, greedily, and see which of two words is written in each.

        heard = hear_words(model, "manifest.csv")
        wrong = [one for one in heard if one.verdict == "neighbour"]

    - `clips`: see `read_clips`; each has a text and the labels `word` and `neighbour` (columns may
      be called otherwise), and is a window long at most.
    - `out`: a folder where transcripts are kept as they come; run again, it goes on behind them.
    - `prompt`: how the model is asked; the language is the recording's, where it has one.
    - `process`: as in `sweep_dataset`.

    Raises `WordError` for a recording without text, word or neighbour; `ManifestError`,
    `RecordsError`, `AudioError`.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), where sentences hold
    a word that sounds like the one which the context asks for.
    """
    read = read_clips(clips)
    for clip in read:
        _check(clip, word, neighbour)
    by_id = {clip.id: clip for clip in read}
    done = work_through(
        list(by_id),
        lambda name: _transcribed(model, by_id[name], max_new_tokens, prompt),
        folder=out,
        asked=None
        if out is None
        else {
            "work": "hear_words",
            **computed_with(model),
            "clips (hash)": clips_hash(read),
            "max_new_tokens": max_new_tokens,
            "prompt": prompt,
        },
        process=process,
        progress=progress,
        name="transcribe",
        unit="clip",
    )
    return [_heard(by_id[name], one, word, neighbour) for name, one in done.results.items()]


def verdict(text: str, word: str, neighbour: str, language: str = "en") -> str:
    """Which of two words a text has, where it has one of them alone.

    Case and marks do not count, nor does what Whisper's normaliser takes for the same word.

    >>> verdict("We eat white lice.", "lice", "rice")
    'said'
    """
    has_word, has_neighbour = (_has(text, one, language) for one in (word, neighbour))
    if has_word == has_neighbour:
        return OTHER
    return SAID if has_word else NEIGHBOUR


def _has(text: str, word: str, language: str) -> bool:
    return any(
        f" {' '.join(bare(word))} " in f" {' '.join(bare(text))} "
        for bare in (_words, lambda said: _words(normaliser(language)(said)))
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _check(clip: Clip, word: str, neighbour: str) -> None:
    missing = [name for name in (word, neighbour) if not clip.labels.get(name)]
    if not clip.text or missing:
        raise WordError(
            f"{clip.id!r} has no {missing[0] if missing else 'text'}: each recording needs its "
            f"text, and columns {word!r} (the one that is said) and {neighbour!r} (the other)"
        )


def _transcribed(
    model: Any, clip: Clip, max_new_tokens: int | None, prompt: Mapping[str, Any]
) -> dict[str, Any]:
    samples = load_audio(clip.audio_path)
    told = {"language": language_code(clip.language)} if clip.language else {}
    known = told if "language" in model.asked_by else {}
    asked = model.settled(samples, **{**known, **prompt})
    said = Listening(model, samples, asked, max_new_tokens).untouched()
    return {"text": said.text, "tokens": list(map(int, said.tokens)), "asked": asked}


def _heard(clip: Clip, record: Mapping[str, Any], word: str, neighbour: str) -> HeardWord:
    both = str(clip.labels[word]), str(clip.labels[neighbour])
    language = language_code(clip.language or record["asked"].get("language") or "en")
    return HeardWord(
        id=clip.id,
        audio=str(clip.audio_path),
        text=clip.text or "",
        word=both[0],
        neighbour=both[1],
        heard=record["text"],
        tokens=record["tokens"],
        verdict=verdict(record["text"], *both, language),
        language=language,
        group=clip.group,
        labels=dict(clip.labels),
        asked=record["asked"],
    )


def plain_fields(heard: Sequence[HeardWord]) -> list[dict[str, Any]]:
    """All that is known of them but for where they lie."""
    return [{k: v for k, v in asdict(one).items() if k != "audio"} for one in heard]
