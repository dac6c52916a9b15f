"""The logit lens: each layer's stream, read as if it were the last.

Source: "Interpreting GPT: the logit lens" (2020); for recognisers, "Beyond Transcription:
Mechanistic Interpretability in ASR" (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_asr.hooks import Hooks
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.reading import Reading, Translate
from hooked_asr.lenses.trace import Readable, Trace, texts_of, trace
from hooked_asr.names import select

_STREAMS = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")


@torch.no_grad()
def logit_lens(
    model: Any,
    inputs: Readable,
    *,
    at: str | Sequence[str] = "resid_post",
    top_k: int = 5,
    ahead: int = 1,
    pos_slice: int | slice | None = None,
    keep_logits: bool = False,
    fwd_hooks: Hooks = (),
    translate: Translate | None = None,
    progress: bool = True,
) -> LogitLens:
    """Each decoder layer's stream through the final norm and the unembedding, at every position.

        lens = logit_lens(model, (mel, tokens))
        lens.plot(), lens.to_pandas(), saturation_layers(lens)

    - `inputs`: of one run, of a clip or a batch, as `model.to_inputs` gives them; or a pair of
      log-mel frames and tokens. Where its `attention_mask` hides a token, the lens has NaN.
      Or a decoding (see below).
    - `at`: which stream of each layer: "resid_pre", "resid_mid", "resid_mid_cross" (Whisper) or
      "resid_post"; or a list of these.
    - `top_k`: likeliest tokens to keep.
    - `ahead`: how many of the tokens that really follow to look for, at each position.
    - `pos_slice`: read only these positions.
    - `keep_logits`: keep the logits too, `[site batch pos d_vocab]` on the CPU; otherwise they are
      reduced as they come, and never held for more than one layer.
    - `fwd_hooks`: read a run with these attached. They act in the run, not in the reading.
    - `translate`: what a stream goes through before the norm, as `translate(site, stream)`: a tuned
      lens. The last layer's "resid_post" is read as it is.

    It takes one forward and one unembedding for each layer but the last, whose logits at
    "resid_post" are the run's own.

    A decoding is read from what it kept, with all that was done in it, and nothing runs again:

        out = model.generate(clip, names_filter="decoder.*.hook_resid_post")
        lens = logit_lens(model, out)

    One of several windows is `out.windows[0]`; of beams, it is the one that won. There is NaN
    behind a row's end, and at padding in front of a prompt. The model's own distribution, before
    the rules of decoding, is that of "unembed.hook_out" where this was kept too; or else what the
    last layer's stream amounts to, which leaves out hooks that act behind it.

    Raises `LensError` for a stream, or a number of tokens, that the model does not have, or streams
    that a decoding did not keep.
    """
    hooks = _hooks(model, at)
    _check_counts(model, top_k, ahead)
    sites = select(hooks, model.hook_table)
    passed = trace(model, inputs, hooks, pos_slice, fwd_hooks)
    follows = _following(passed, ahead)
    reading = Reading(
        model, sites, passed.cache, passed.logits, follows.tokens, top_k, keep_logits, translate
    )
    with model.unhooked():
        found = reading.read(progress)
    return _result(model, passed, sites, follows, found)


# --- What is asked for ----------------------------------------------------------------------------


def _hooks(model: Any, at: str | Sequence[str]) -> list[str]:
    """The hooks of the streams asked for, in all layers."""
    asked = [at] if isinstance(at, str) else list(at)
    there = [one for one in _STREAMS if f"decoder.0.hook_{one}" in model.hook_table]
    wrong = [one for one in asked if one not in there]
    if wrong or not asked:
        raise LensError(
            f"a logit lens reads the decoder's {', '.join(there)}; got at={wrong or asked}"
        )
    return [f"decoder.*.hook_{one}" for one in dict.fromkeys(asked)]


def _check_counts(model: Any, top_k: int, ahead: int) -> None:
    d_vocab = model.config.d_vocab
    if not 1 <= top_k <= d_vocab:
        raise LensError(f"the vocabulary has {d_vocab} tokens; asked for the top {top_k}")
    if ahead < 0:
        raise LensError(f"ahead counts the tokens that follow, from 0; got {ahead}")


@dataclass(frozen=True)
class _Following:
    """The tokens that follow each position, and where there are any."""

    tokens: Int[Tensor, "batch pos ahead"]
    known: Bool[Tensor, "batch pos ahead"]


def _following(passed: Trace, ahead: int) -> _Following:
    n_tokens = passed.tokens.shape[1]
    places = torch.tensor(passed.positions)[:, None] + torch.arange(1, ahead + 1)
    inside = places.clamp(max=n_tokens - 1)
    known = passed.known[:, inside] & (places < n_tokens) & passed.real[..., None]
    return _Following(passed.tokens[:, inside].long(), known)


# --- What comes of it ----------------------------------------------------------------------------


def _result(
    model: Any,
    passed: Trace,
    sites: list[str],
    follows: _Following,
    found: dict[str, Tensor],
) -> LogitLens:
    """Numbers with what they are of; nothing where there is only padding, or nothing follows."""
    logits = found.pop("logits", None)
    numbers = {
        name: _blanked(name, values, passed, follows.known) for name, values in found.items()
    }
    tokens = (passed.tokens, numbers["top_tokens"], numbers["final_tokens"])
    return LogitLens(
        **numbers,
        sites=sites,
        positions=list(passed.positions),
        tokens=passed.tokens,
        real=passed.real,
        model=model.name,
        name="logit lens",
        texts=texts_of(model, *tokens),
        logits=logits,
    )


def _blanked(
    name: str, values: Tensor, passed: Trace, known: Bool[Tensor, "batch pos ahead"]
) -> Tensor:
    """NaN, or -1 among ids, where there is nothing to read."""
    there = known if name.startswith("ahead_") else passed.real
    if name.startswith("top_"):
        there = there[..., None]
    return torch.where(there, values, math.nan if values.is_floating_point() else -1)
