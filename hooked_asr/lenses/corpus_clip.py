"""What a corpus's logit lens keeps of one recording."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_asr.generation import end_tokens
from hooked_asr.lenses.forced import forced_run
from hooked_asr.lenses.logit import logit_lens
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.phonemes import Phonemes
from hooked_asr.lenses.saturation import saturation_layers
from hooked_asr.lenses.similarity import candidate_similarity
from hooked_asr.lenses.tuned import TunedLens
from hooked_asr.manifests import Clip
from hooked_asr.speech import language_code

FORCES = ("heard", "text")
RULES = ("stable", "first")
_OWN = ("final_prob", "final_rank", "entropy", "kl")


@dataclass(frozen=True)
class Settings:
    """How every recording is read; see `corpus_lens`."""

    top_k: int
    ahead: int
    language: str | None
    force: str
    similarity: bool
    phonemes: Phonemes | None
    tuned: TunedLens | None
    prompt: Mapping[str, Any]


def clip_record(model: Any, clip: Clip, how: Settings) -> dict[str, Any]:
    """The means of one recording's lens over its text, as JSON holds them.

    `measures`: `[layer]` by name, NaN where there is no text. `saturated`: how many tokens saturate
    in each layer, by rule. `tokens`: how many there are.
    """
    known = clip.language or how.language
    language = None if known is None else language_code(known)
    spoken = {"language": language} if language and "language" in model.asked_by else {}
    text = clip.text if how.force == "text" else None
    run = forced_run(model, clip.audio_path, text, **how.prompt, **spoken)
    language = run.asked.get("language") or language
    lens = logit_lens(
        model,
        run.inputs,
        top_k=how.top_k,
        ahead=how.ahead,
        pos_slice=slice(run.n_prompt - 1, None),
        translate=how.tuned,
        progress=False,
    )
    places = text_positions(model, lens)
    measures = lens_measures(lens, places)
    if how.similarity:
        measures |= _likeness(model, lens, places, language, how.phonemes)
    return {
        "text": run.text,
        "language": language or "",
        "tokens": int(places.sum()),
        "measures": {name: values.tolist() for name, values in measures.items()},
        "saturated": {rule: _counts(lens, places, rule) for rule in RULES},
    }


def text_positions(model: Any, lens: LogitLens) -> Bool[Tensor, " pos"]:
    """Where a token of text comes next, and the model ends with one too."""
    ends = end_tokens(model.generation_config)
    # Behind the end token come the other special ones, time stamps among them.
    n_text = min(ends) if ends else model.config.d_vocab
    following = torch.tensor(lens.positions) + 1
    inside = following < lens.tokens.shape[1]
    next_token = lens.tokens[0, following.clamp(max=lens.tokens.shape[1] - 1)]
    return inside & (next_token < n_text) & (lens.final_tokens[0] < n_text)


def lens_measures(
    lens: LogitLens, text: Bool[Tensor, " pos"]
) -> dict[str, Float[Tensor, " layer"]]:
    """The means over these positions of all that a lens of one clip measures."""
    values = {name: getattr(lens, name) for name in _OWN}
    for i in range(lens.ahead_rank.shape[-1]):
        values[f"ahead_{i + 1}_rank"] = lens.ahead_rank[..., i]
        values[f"ahead_{i + 1}_prob"] = lens.ahead_prob[..., i]
    return {name: one[:, 0, text].double().nanmean(-1) for name, one in values.items()}


def _likeness(
    model: Any,
    lens: LogitLens,
    text: Bool[Tensor, " pos"],
    language: str | None,
    phonemes: Phonemes | None,
) -> dict[str, Float[Tensor, " layer"]]:
    """How the candidates sound and mean, over all pairs of words; "_others" without the final
    token, "_elsewhere" these beside a final token of another place in the clip.
    """
    # A Whisper's prompt tells, also that a translation is English.
    known = None if "language" in model.asked_by else language
    compared = partial(
        candidate_similarity, model, language=known, phonemes=phonemes, progress=False
    )
    found = compared(lens)
    others = found.words & ~found.is_final
    away = compared(replace(lens, final_tokens=_elsewhere(lens.final_tokens, text)))
    same = (away.final_tokens == lens.final_tokens)[..., None]
    kinds = {
        "": (found, found.words),
        "_others": (found, others),
        "_elsewhere": (away, others & away.words & ~away.is_final & ~same),
    }
    means = {}
    for ending, (pairs, kept) in kinds.items():
        for name in ("per", "cosine"):
            values = torch.where(kept, getattr(pairs, name).double(), math.nan)
            means[name + ending] = values[:, 0, text].flatten(1).nanmean(-1)
    return means


def _elsewhere(tokens: Int[Tensor, "1 pos"], text: Bool[Tensor, " pos"]) -> Int[Tensor, "1 pos"]:
    """At each position of the text, the token that stands half of the text further on."""
    moved = tokens.clone()
    moved[0, text] = tokens[0, text].roll(-(int(text.sum()) // 2))
    return moved


def _counts(lens: LogitLens, text: Bool[Tensor, " pos"], rule: str) -> list[int]:
    found = saturation_layers(lens, rule)[0, text]
    counts: list[int] = torch.bincount(found, minlength=len(lens.layers)).tolist()
    return counts
