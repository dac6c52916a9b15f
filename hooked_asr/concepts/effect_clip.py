"""What interventions do to what is heard in one recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_asr.audio import load_audio
from hooked_asr.concepts.doses import Dose
from hooked_asr.generation import Generated
from hooked_asr.generation.row_hooks import RowHooks
from hooked_asr.manifests import Clip
from hooked_asr.models.whisper_prompt import is_multilingual
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.metrics import Metric, kl, transcript_log_prob
from hooked_asr.shapes import Audio
from hooked_asr.speech import count_character_errors, count_word_errors, language_code, normaliser

OWN = "own"  # each clip's own language
Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Asking:
    """How every recording is decoded; see `concept_effect`."""

    language: str | None
    max_new_tokens: int | None
    batch_size: int
    prompt: Mapping[str, Any]


def clip_record(model: Any, clip: Clip, doses: Sequence[Dose], how: Asking) -> dict[str, Any]:
    """One recording without and with each dose, as JSON holds it."""
    samples = load_audio(clip.audio_path)
    model.to_mel(samples)  # refused here, where it is longer than a window
    rows = [one.interventions for one in doses]
    known = None if clip.language is None else language_code(clip.language)
    heard = _heard(model, samples, rows, known, how)
    told = _told(model, samples, rows, how.batch_size)
    before = heard[0]
    reference = before.text if clip.text is None else clip.text
    normalise = normaliser(known or _likeliest(told[0]) or "en", model.tokenizer)
    forced = _forced(model, samples, before, rows, how)
    outcomes = []
    for one, languages, numbers in zip(heard, told, forced, strict=True):
        words = count_word_errors(reference, one.text, normalise)
        characters = count_character_errors(reference, one.text, normalise)
        outcomes.append(
            {
                "text": one.text,
                "language": _likeliest(languages),
                "languages": languages,
                "changed": one.text != before.text,
                "word_errors": words.errors,
                "character_errors": characters.errors,
                **numbers,
            }
        )
    return {
        "reference": reference,
        "against": "before" if clip.text is None else "text",
        "words": words.said,
        "characters": characters.said,
        "language": known or "",
        "outcomes": outcomes,
    }


# --- Free decoding --------------------------------------------------------------------------------


def _heard(
    model: Any, samples: Tensor, rows: Rows, known: str | None, how: Asking
) -> Sequence[Generated]:
    """What is heard without any row's interventions, then with each."""
    everything: Rows = [(), *rows]
    if not hasattr(model, "generate_rows"):
        inputs = model.to_inputs(samples, **model.settled(samples, **how.prompt))
        limit = how.max_new_tokens
        return [
            model.generate(**inputs, interventions=row, max_new_tokens=limit)[0]
            for row in everything
        ]
    heard: Sequence[Generated] = model.generate_rows(
        samples,
        [list(row) for row in everything],
        language=known if how.language == OWN else how.language,
        max_new_tokens=how.max_new_tokens,
        batch_size=how.batch_size,
        **how.prompt,
    )
    return heard


# --- The language told ----------------------------------------------------------------------------


def _told(model: Any, samples: Tensor, rows: Rows, batch_size: int) -> list[dict[str, float]]:
    """How likely a Whisper takes each language to be, without and with each row's interventions.

    Nothing for a model that tells none.
    """
    everything: Rows = [(), *rows]
    if not hasattr(model, "languages_of"):
        return [{} for _ in everything]
    if not is_multilingual(model.generation_config):
        return [{"en": 1.0} for _ in everything]
    mel = model.to_mel(samples)
    hooks = RowHooks(model, everything)
    found: dict[int, dict[str, float]] = {}
    for touched in (False, True):  # only those whose sound is another need an encoding of their own
        own = [row for row in range(len(everything)) if hooks.touches_audio(row) == touched]
        for start in range(0, len(own), batch_size):
            hooks.rows = own[start : start + batch_size]
            with hooks.attached():
                audio = model.encode(mel)  # rows join where the first of them has something to do
                found |= dict(
                    zip(hooks.rows, _languages(model, audio, len(hooks.rows)), strict=True)
                )
    return [found[row] for row in range(len(everything))]


def _languages(model: Any, audio: Audio, n_rows: int) -> list[dict[str, float]]:
    """Probabilities behind the start token, of languages alone."""
    rules = model.generation_config
    start = torch.full((n_rows, 1), rules.decoder_start_token_id, device=model.device)
    ids = {name.strip("<|>"): token for name, token in rules.lang_to_id.items()}
    logits = model.decode(start, audio)[:, -1, list(ids.values())]
    shares = logits.float().softmax(-1).tolist()
    return [dict(zip(ids, row, strict=True)) for row in shares]


def _likeliest(languages: Mapping[str, float]) -> str:
    return max(languages, key=lambda name: languages[name]) if languages else ""


# --- Forced with the transcript as it was ---------------------------------------------------------


def _forced(
    model: Any, samples: Tensor, before: Generated, rows: Rows, how: Asking
) -> list[dict[str, float]]:
    """KL and log-probability of the unmodified transcript, without and with each row.

    Nothing for rows that act in some steps of a decoding only, or on another run beside: a forced
    run has neither.
    """
    inputs = model.to_inputs(samples, **model.settled(samples, **_spoken(before), **how.prompt))
    n_prompt = inputs["tokens"].shape[1]
    inputs = _with_behind(inputs, before.tokens)
    forced = [row for row in rows if _can_be_forced(row)]
    read = slice(n_prompt - 1, None)
    divergence = Metric("kl", kl(model(**inputs)[:, read]).measure, read)
    moved = run_rows(model, inputs, forced, divergence).values.clamp(min=0.0)  # but for rounding
    numbers = {"kl": [0.0, *moved.tolist()]}
    if before.tokens:
        likely = run_rows(model, inputs, forced, transcript_log_prob(inputs["tokens"], n_prompt))
        numbers["log_prob"] = [likely.clean, *likely.values.tolist()]
    each = (dict(zip(numbers, one, strict=True)) for one in zip(*numbers.values(), strict=True))
    return [next(each) if _can_be_forced(row) else {} for row in [(), *rows]]


def _spoken(before: Generated) -> dict[str, str]:
    language = getattr(before, "language", None)
    return {} if language is None else {"language": language}


def _can_be_forced(row: tuple[Any, ...]) -> bool:
    return all(one.steps is None and one.lockstep is None for one in row)


def _with_behind(inputs: dict[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """A prompt's inputs, with these tokens behind it."""
    behind = {"tokens": torch.tensor([list(tokens)], dtype=torch.long)}
    behind["attention_mask"] = torch.ones_like(behind["tokens"])
    return inputs | {
        name: torch.cat([inputs[name], new.to(inputs[name])], 1)
        for name, new in behind.items()
        if name in inputs
    }
