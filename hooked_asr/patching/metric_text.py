"""Metrics as the command line writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hooked_asr.errors import HookedASRError
from hooked_asr.models.inputs import InputError
from hooked_asr.patching.metrics import Metric, kl, log_prob, logit_diff, transcript_log_prob
from hooked_asr.shapes import Tokens

METRIC_HELP = (
    "transcript (mean log-probability of the text), kl (from the clean run), log_prob:TOKEN, or "
    "logit_diff:TOKEN/OTHER; @N behind it reads at position N, otherwise where TOKEN comes next, "
    "or at the end"
)


class MetricError(HookedASRError):
    """A metric that was not understood, or has no place in this transcript."""


def parse_metric(text: str, model: Any, inputs: Mapping[str, Tensor], prompt_length: int) -> Metric:
    """The metric that `text` means for one run, whose text begins behind the prompt.

    Raises `MetricError` for what is no metric, `InputError` for a text that is not one token.
    """
    tokens = inputs["tokens"]
    match = re.fullmatch(r"(\w+)(?::(.+?))?(?:@(\d+))?", text)
    kind, words, at = match.groups() if match else ("", None, None)
    pos = int(at) if at else None
    if pos is not None and pos >= tokens.shape[1]:
        raise MetricError(f"the run has positions 0 to {tokens.shape[1] - 1}; got @{pos}")
    if kind == "transcript" and not words:
        if pos is not None:
            raise MetricError("transcript is a mean over all positions: leave out the @")
        if tokens.shape[1] <= prompt_length:
            raise MetricError("the transcript is empty and has no log-probability: give a text")
        return transcript_log_prob(tokens, prompt_length)
    if kind == "kl" and not words:
        with torch.no_grad():
            return kl(model(**inputs), pos)
    if kind == "log_prob" and words:
        token = _token(model, words)
        return _named(kind, words, log_prob, token, place=_place(pos, token, tokens))
    if kind == "logit_diff" and words and words.count("/") == 1:
        a, b = (_token(model, word) for word in words.split("/"))
        return _named(kind, words, logit_diff, a, b, place=_place(pos, a, tokens))
    raise MetricError(f"no metric {text!r}; there are {METRIC_HELP}")


def _named(kind: str, words: str, make: Callable[..., Metric], *ids: int, place: int) -> Metric:
    """The metric under the words that were asked for, not their ids."""
    return replace(make(*ids, place), name=f"{kind}({words}, pos={place})")


def _token(model: Any, word: str) -> int:
    """A word as a token; as the model writes it, with a space before, where that is one."""
    try:
        token: int = model.to_single_token(f" {word}")
    except InputError:
        token = model.to_single_token(word)
    return token


def _place(pos: int | None, token: int, tokens: Tokens) -> int:
    if pos is not None:
        return pos
    following = (tokens[0, 1:] == token).nonzero()
    return int(following[0]) if len(following) else tokens.shape[1] - 1
