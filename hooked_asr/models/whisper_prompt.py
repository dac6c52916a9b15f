"""The tokens that tell Whisper what to do: start, language, task, timestamps or not."""

from __future__ import annotations

from typing import Any

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from hooked_asr.errors import HookedASRError


class PromptError(HookedASRError):
    """A prompt that the checkpoint cannot be given."""


def is_multilingual(rules: Any) -> bool:
    return bool(getattr(rules, "lang_to_id", None))


def prompt_tokens(
    rules: Any,
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool = False,
) -> list[int]:
    """Whisper's prompt for a checkpoint with these rules.

    `language` is a code ("de") or an English name ("german"); an English-only checkpoint takes
    none, or English. `task` is "transcribe" or "translate" (into English).

    Raises `PromptError` for a language or a task that the checkpoint lacks.
    """
    if rules.decoder_start_token_id is None:
        raise PromptError("the checkpoint's generation config names no decoder_start_token_id")
    prompt = [rules.decoder_start_token_id]
    if is_multilingual(rules):
        prompt += [_language_token(rules, language), _task_token(rules, task)]
    elif task != "transcribe" or (language and _code(language) != "en"):
        raise PromptError(
            f"this checkpoint only transcribes English; asked to {task} {language or 'speech'}"
        )
    else:
        # Fine-tunes from before there were languages and tasks in the rules keep their prompt here.
        forced = getattr(rules, "forced_decoder_ids", None) or []
        prompt += [token for _, token in forced if token is not None]
    silent = getattr(rules, "no_timestamps_token_id", None)
    if timestamps:
        return [token for token in prompt if token != silent]
    return prompt if silent is None or silent in prompt else [*prompt, silent]


def _language_token(rules: Any, language: str | None) -> int:
    known = {name.strip("<|>"): token for name, token in rules.lang_to_id.items()}
    if language is None:
        raise PromptError(
            "this checkpoint speaks many languages: say which, as in language='en' "
            "(model.detect_language(mel) tells it from the audio)"
        )
    if _code(language) not in known:
        raise PromptError(f"no language {language!r}; there are {', '.join(sorted(known))}")
    return known[_code(language)]


def _task_token(rules: Any, task: str) -> int:
    if task not in rules.task_to_id:
        raise PromptError(f"no task {task!r}; there are {', '.join(sorted(rules.task_to_id))}")
    token: int = rules.task_to_id[task]
    return token


def _code(language: str) -> str:
    return TO_LANGUAGE_CODE.get(language.lower(), language.lower())
