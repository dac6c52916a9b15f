"""Transcripts behind their prompts, clip beside clip: what the decoder is forced with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.features.errors import FeatureError
from hooked_asr.features.loading import Heard, Unusable
from hooked_asr.generation import end_tokens, greedy
from hooked_asr.shapes import Audio
from hooked_asr.speech import language_code

TEXTS = ("heard", "text")


@dataclass(frozen=True)
class Asking:
    """How transcripts come about: see `harvest`."""

    texts: str
    language: str | None
    prompt: Mapping[str, Any]


@dataclass(frozen=True)
class Forced:
    """One clip's row of tokens: prompt and transcript.

    `places`: where the tokens of text are; special ones, time stamps among them, are none.
    """

    tokens: list[int]
    n_prompt: int
    places: list[int]
    text: str
    language: str | None

    @property
    def said(self) -> list[int]:
        """The tokens of text."""
        return [self.tokens[place] for place in self.places]


def forced_rows(
    model: Any, clips: Sequence[Heard], encoded: Audio, asking: Asking
) -> list[Forced | Unusable]:
    """For each clip its prompt and transcript, decoded greedily where it is not to be given.

    `encoded` is the encoder's output for these clips. Where one cannot be asked, or has no room
    for its text, that is what is said of it.
    """
    languages = _languages(model, clips, encoded, asking)
    prompts = [
        _prompt(model, clip, language, asking)
        for clip, language in zip(clips, languages, strict=True)
    ]
    asked = [i for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
    said = _said(model, clips, encoded, prompts, asked, asking)
    rows: list[Forced | Unusable] = []
    for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        if isinstance(prompt, Unusable):
            rows.append(prompt)
        else:
            rows.append(_row(model, clip, prompt, said[i], languages[i], asking))
    return rows


def padded(model: Any, rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch pos"]:
    """Rows of unequal length, padded behind: nothing before it looks there."""
    longest, padding = max(map(len, rows)), _padding(model)
    whole = [[*row, *[padding] * (longest - len(row))] for row in rows]
    return torch.tensor(whole, device=model.device)


# --- What is said ---------------------------------------------------------------------------------


def _languages(
    model: Any, clips: Sequence[Heard], encoded: Audio, asking: Asking
) -> list[str | None]:
    """That of each clip; told from the sound where it is open, and the model can."""
    found = [one.clip.language or asking.language for one in clips]
    if "language" not in model.asked_by:
        return found
    wanting = [i for i, language in enumerate(found) if language is None]
    if wanting:
        for i, language in zip(wanting, model.languages_of(encoded[wanting]), strict=True):
            found[i] = language
    return found


def _prompt(model: Any, clip: Heard, language: str | None, asking: Asking) -> list[int] | Unusable:
    if asking.texts == "text" and clip.clip.text is None:
        return Unusable(clip.clip, FeatureError("it has no text to force"))
    if clip.prompt is not None:
        return clip.prompt
    try:
        prompt: list[int] = model.prompt(language_code(str(language)), **asking.prompt)
        return prompt
    except HookedASRError as error:
        return Unusable(clip.clip, error)


def _said(
    model: Any,
    clips: Sequence[Heard],
    encoded: Audio,
    prompts: Sequence[Any],
    asked: Sequence[int],
    asking: Asking,
) -> dict[int, list[int]]:
    """The transcript's tokens of each clip that is asked."""
    if asking.texts == "text":
        return {i: _ids(model, clips[i].clip.text or "") for i in asked}
    if not asked:
        return {}
    inputs = {"audio": encoded[list(asked)], **_left_padded(model, [prompts[i] for i in asked])}
    if model.config.prefix:
        inputs["mel_mask"] = torch.cat([clips[i].mel_mask for i in asked]).to(model.device)
    return dict(zip(asked, greedy(model, inputs), strict=True))


def _left_padded(model: Any, rows: Sequence[list[int]]) -> dict[str, Tensor]:
    """Prompts for decoding; a mask where some are shorter than others."""
    longest, padding = max(map(len, rows)), _padding(model)
    gaps = [longest - len(row) for row in rows]
    tokens = [[padding] * gap + row for gap, row in zip(gaps, rows, strict=True)]
    inputs = {"tokens": torch.tensor(tokens, device=model.device)}
    if any(gaps):
        mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
        inputs["attention_mask"] = torch.tensor(mask, device=model.device)
    return inputs


def _ids(model: Any, text: str) -> list[int]:
    """A transcript's tokens, as `to_inputs(text=…)` puts them behind the prompt."""
    if not model.config.prefix:
        own: list[int] = model.encode_text(text)
        return own
    ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _row(
    model: Any,
    heard: Heard,
    prompt: list[int],
    said: list[int],
    language: str | None,
    asking: Asking,
) -> Forced | Unusable:
    tokens, n_ctx = [*prompt, *said], model.config.decoder.n_ctx
    if len(tokens) > n_ctx:
        error = FeatureError(
            f"prompt and text have {len(tokens)} tokens, and the decoder {n_ctx} positions: give a "
            "shorter text, or texts='heard'"
        )
        return Unusable(heard.clip, error)
    n_text = min(end_tokens(model.generation_config), default=model.config.d_vocab)
    places = [i for i in range(len(prompt), len(tokens)) if tokens[i] < n_text]
    text = heard.clip.text if asking.texts == "text" else model.text_of(said)
    return Forced(tokens, len(prompt), places, text or "", language)


def _padding(model: Any) -> int:
    return next(iter(end_tokens(model.generation_config)), 0)
