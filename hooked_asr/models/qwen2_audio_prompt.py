"""Prompts of Qwen2-Audio: words and clips, as they stand or in conversations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from hooked_asr.models.inputs import InputError

Message = Mapping[str, Any]
_AUDIO = "audio"
_RECORDING = ("audio", "audio_url", "path", "url")  # where a message may name its recording


@dataclass(frozen=True)
class Prompt:
    """One row to be: its words, as they stand or as a conversation, and its clips in order."""

    words: str | list[Message]
    clips: list[Any] = field(default_factory=list)


def prompts(audio: Any, prompt: Any) -> list[Prompt]:
    """What was asked for, row by row."""
    if not _is_batch(prompt):
        return [_prompt(audio, prompt)]
    clips = [None] * len(prompt) if audio is None else audio
    if _is_clip(clips) or len(clips) != len(prompt):
        got = "one clip" if _is_clip(clips) else f"{len(clips)} entries of audio"
        raise InputError(
            f"a batch of {len(prompt)} prompts takes as many entries of audio, each a clip, a list "
            f"of clips or None; got {got}"
        )
    return [_prompt(own, words) for own, words in zip(clips, prompt, strict=True)]


def as_conversation(prompt: Prompt) -> list[Message]:
    """A prompt as messages: clips first, then the user's words, unless it says otherwise."""
    if not isinstance(prompt.words, str):
        return prompt.words
    parts: list[Message] = [{"type": _AUDIO} for _ in prompt.clips]
    if prompt.words:
        parts.append({"type": "text", "text": prompt.words})
    return [{"role": "user", "content": parts}]


def _is_clip(audio: Any) -> bool:
    return isinstance(audio, str | os.PathLike | np.ndarray | Tensor)


def _is_batch(prompt: Any) -> bool:
    if not isinstance(prompt, list | tuple):
        return False
    if not prompt:
        raise InputError("the list of prompts is empty")
    return not isinstance(prompt[0], Mapping)  # a conversation is a list too, of messages


def _prompt(audio: Any, words: Any) -> Prompt:
    clips = [] if audio is None else [audio] if _is_clip(audio) else list(audio)
    if words is None:
        words = ""
    if isinstance(words, str):
        if not (words or clips):
            raise InputError("nothing to hear or read: give audio, a prompt, or both")
        return Prompt(words, clips)
    if not isinstance(words, Sequence) or not all(isinstance(one, Mapping) for one in words):
        raise InputError(
            "a prompt is text, or a conversation: a list of messages like "
            '{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "…"}]}; '
            f"got {words!r:.80}"
        )
    return _conversation(list(words), clips)


def _conversation(messages: list[Message], clips: list[Any]) -> Prompt:
    parts = [part for message in messages for part in _parts(message)]
    places = [part for part in parts if part.get("type") == _AUDIO]
    named = [_recording(part) for part in places]
    if any(one is not None for one in named):
        if clips or None in named:
            raise InputError(
                "either every audio part of a conversation names its recording, or none does and "
                "audio gives them in order"
            )
        clips = named
    if len(clips) != len(places):
        raise InputError(
            f"the conversation has {len(places)} audio parts, but {len(clips)} clips were given"
        )
    return Prompt([_without_recordings(message) for message in messages], clips)


def _parts(message: Message) -> list[Message]:
    if not {"role", "content"} <= message.keys():
        raise InputError(f"a message has a role and content; got {dict(message)!r:.80}")
    content = message["content"]
    return [] if isinstance(content, str) else list(content)


def _recording(part: Message) -> Any:
    return next((part[name] for name in _RECORDING if part.get(name) is not None), None)


def _without_recordings(message: Message) -> Message:
    if isinstance(message["content"], str):
        return dict(message)
    plain = [
        {"type": _AUDIO} if part.get("type") == _AUDIO else dict(part)
        for part in message["content"]
    ]
    return {**message, "content": plain}
