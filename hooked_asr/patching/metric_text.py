"""Metrics as the command line writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hooked_asr.models.inputs import InputError
from hooked_asr.patching.metrics import (
    Metric,
    MetricError,
    kl,
    log_prob,
    logit,
    logit_diff,
    preference,
    prob,
    rank,
    transcript_log_prob,
)
from hooked_asr.patching.text_metrics import TextMetric, character_error_rate, word_error_rate
from hooked_asr.shapes import Tokens
from hooked_asr.speech import normaliser

__all__ = ["METRIC_HELP", "MetricError", "parse_metric"]

METRIC_HELP = (
    "transcript (mean log-probability of the text), kl (from the clean run); log_prob:TOKEN, "
    "prob:TOKEN, logit:TOKEN or rank:TOKEN (0 is the likeliest); logit_diff:TOKEN/OTHER; "
    "preference:SAID/LIKELIER (of two words, log-probability of the one that was said less that "
    "of the likelier); wer or cer (word or character error rate of what is then decoded against "
    "the text). @N behind a word reads at position N, otherwise where TOKEN comes next, or at the "
    "end"
)

_ONE_TOKEN = {"log_prob": log_prob, "prob": prob, "logit": logit, "rank": rank}
_RATES = {"wer": word_error_rate, "cer": character_error_rate}


@dataclass(frozen=True)
class _Wish:
    """A metric's text, taken apart: kind, words and position."""

    kind: str
    words: tuple[str, ...]
    pos: int | None

    @property
    def label(self) -> str:
        return "/".join(self.words)


def parse_metric(
    text: str,
    model: Any,
    inputs: Mapping[str, Tensor],
    prompt_length: int,
    asked: Mapping[str, Any] | None = None,
) -> Metric | TextMetric:
    """The metric that `text` means for one run, whose text begins behind the prompt.

    `asked`: the prompt's options, as `model.settled` gives them; a decoding is asked alike.

    Raises `MetricError` for what is no metric, `InputError` for a text that is not one token.
    """
    tokens = inputs["tokens"]
    match = re.fullmatch(r"(\w+)(?::(.+?))?(?:@(\d+))?", text)
    kind, words, at = match.groups() if match else ("", None, None)
    wish = _Wish(kind, tuple(words.split("/")) if words else (), int(at) if at else None)
    if wish.pos is not None and wish.pos >= tokens.shape[1]:
        raise MetricError(f"the run has positions 0 to {tokens.shape[1] - 1}; got @{wish.pos}")
    if kind == "transcript" and not words:
        return _transcript(wish, tokens, prompt_length)
    if kind in _RATES and not words:
        return _error_rate(wish, model, tokens, prompt_length, asked or {})
    if kind == "kl" and not words:
        with torch.no_grad():
            return kl(model(**inputs), wish.pos)
    if kind in _ONE_TOKEN and words:
        token = _token(model, words)
        return _named(wish.kind, words, _ONE_TOKEN[kind], token, place=_place(wish, token, tokens))
    if kind == "logit_diff" and len(wish.words) == 2 and all(wish.words):
        a, b = (_token(model, word) for word in wish.words)
        return _named(kind, wish.label, logit_diff, a, b, place=_place(wish, a, tokens))
    if kind == "preference" and len(wish.words) == 2 and all(wish.words):
        return _preference(wish, model, tokens)
    raise MetricError(f"no metric {text!r}; there are {METRIC_HELP}")


# --- Of the whole text ----------------------------------------------------------------------------


def _transcript(wish: _Wish, tokens: Tokens, prompt_length: int) -> Metric:
    if wish.pos is not None:
        raise MetricError("transcript is a mean over all positions: leave out the @")
    if tokens.shape[1] <= prompt_length:
        raise MetricError("the transcript is empty and has no log-probability: give a text")
    return transcript_log_prob(tokens, prompt_length)


def _error_rate(
    wish: _Wish, model: Any, tokens: Tokens, prompt_length: int, asked: Mapping[str, Any]
) -> TextMetric:
    if wish.pos is not None:
        raise MetricError(f"{wish.kind} is of the whole transcript: leave out the @")
    said = model.text_of(tokens[0, prompt_length:].tolist())
    language = asked.get("language") or "en"
    # Where the prompt is among a run's own tokens, `generate` is not asked in any other way.
    options = {} if model.config.prefix else dict(asked)
    return _RATES[wish.kind](said, normalise=normaliser(language, model.tokenizer), **options)


# --- Of words -------------------------------------------------------------------------------------


def _named(kind: str, words: str, make: Callable[..., Metric], *ids: Any, place: int) -> Metric:
    """The metric under the words that were asked for, not their ids."""
    return replace(make(*ids, place), name=f"{kind}({words}, pos={place})")


def _token(model: Any, word: str) -> int:
    """A word as a token; as the model writes it, with a space before, where that is one."""
    try:
        token: int = model.to_single_token(f" {word}")
    except InputError:
        token = model.to_single_token(word)
    return token


def _place(wish: _Wish, token: int, tokens: Tokens) -> int:
    if wish.pos is not None:
        return wish.pos
    following = (tokens[0, 1:] == token).nonzero()
    return int(following[0]) if len(following) else tokens.shape[1] - 1


def _preference(wish: _Wish, model: Any, tokens: Tokens) -> Metric:
    """Read where either word stands in the text, in the way in which it is written there."""
    if model.tokenizer is None:
        model.to_single_token(wish.words[0])  # which says what is missing
    row = tokens[0].tolist()
    spaced, bare = (
        [model.tokenizer.encode(f"{space}{word}", add_special_tokens=False) for word in wish.words]
        for space in (" ", "")
    )
    places = [(at, pair) for pair in (spaced, bare) for word in pair for at in _starts(row, word)]
    place, pair = places[0] if places else (len(row), spaced)
    pos = place - 1 if wish.pos is None else wish.pos
    try:
        made = _named(wish.kind, wish.label, preference, *pair, place=pos)
        made.reads(len(row))
    except IndexError:
        raise MetricError(
            f"{wish.label}: the words differ behind the end of the text, which has neither of "
            f"them: {model.to_str_tokens(row)}. Give a text with one of them"
        ) from None
    return made


def _starts(row: Sequence[int], word: Sequence[int]) -> list[int]:
    """Where in a row a word begins, behind its first token."""
    return [i for i in range(1, len(row)) if list(row[i : i + len(word)]) == list(word)]
