"""In which language the transcripts of a logit lens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.models.whisper_prompt import is_multilingual
from hooked_asr.speech.languages import language_code

Languages = str | Sequence[str] | None


def languages_of(model: Any, lens: LogitLens, language: Languages) -> list[str]:
    """A code for each clip: as told, or as the run's prompt tells.

    Raises `LensError` where neither tells, and `LanguageError` for a language unknown to Whisper.
    """
    n_clips = len(lens.tokens)
    if language is None:
        return [_prompted(model, lens.tokens[clip].tolist(), clip) for clip in range(n_clips)]
    asked = [language] * n_clips if isinstance(language, str) else list(language)
    if len(asked) != n_clips:
        raise LensError(
            f"the lens is of {n_clips} clips; got {len(asked)} languages: give one, or one for each"
        )
    return [language_code(one) for one in asked]


def _prompted(model: Any, tokens: list[int], clip: int) -> str:
    """What the prompt of a row says."""
    rules = model.generation_config
    if isinstance(model, HookedWhisper):
        if not is_multilingual(rules):
            return "en"
        if rules.task_to_id.get("translate") in tokens:
            return "en"
        codes = {token: name.strip("<|>") for name, token in rules.lang_to_id.items()}
        told = [codes[token] for token in tokens if token in codes]
        if told:
            return told[0]
    raise LensError(
        f"nothing tells in which language clip {clip} is: no language is named in its prompt; say "
        "which, as in language='en', or one for each clip"
    )
