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
from hooked_asr.names import select
from hooked_asr.patching.operations import Inputs, Run, as_inputs

_STREAMS = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")


@torch.no_grad()
def logit_lens(
    model: Any,
    inputs: Run,
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

    Raises `LensError` for a stream, or a number of tokens, that the model does not have.
    """
    run = as_inputs(inputs)
    n_pos = run["tokens"].shape[1]
    sites = _sites(model, at)
    _check_counts(model, top_k, ahead)
    positions = _positions(pos_slice, n_pos)
    where = slice(positions.start, positions.stop, positions.step)
    logits, cache = model.run_with_cache(
        **run, names_filter=sites, pos_slice=where, fwd_hooks=fwd_hooks
    )
    follows = _following(run, positions, ahead)
    reading = Reading(
        model, sites, cache, logits[:, where], follows.tokens, top_k, keep_logits, translate
    )
    with model.unhooked():
        found = reading.read(progress)
    found["final_tokens"] = logits[:, where].argmax(-1).cpu()
    return _result(model, run, sites, positions, follows, found)


# --- What is asked for ----------------------------------------------------------------------------


def _sites(model: Any, at: str | Sequence[str]) -> list[str]:
    """The hooks of the streams asked for, in the order of the forward."""
    asked = [at] if isinstance(at, str) else list(at)
    there = [one for one in _STREAMS if f"decoder.0.hook_{one}" in model.hook_table]
    wrong = [one for one in asked if one not in there]
    if wrong or not asked:
        raise LensError(
            f"a logit lens reads the decoder's {', '.join(there)}; got at={wrong or asked}"
        )
    n_layers = model.config.decoder.n_layers
    hooks = [f"decoder.{layer}.hook_{one}" for layer in range(n_layers) for one in asked]
    return select(hooks, model.hook_table)


def _check_counts(model: Any, top_k: int, ahead: int) -> None:
    d_vocab = model.config.d_vocab
    if not 1 <= top_k <= d_vocab:
        raise LensError(f"the vocabulary has {d_vocab} tokens; asked for the top {top_k}")
    if ahead < 0:
        raise LensError(f"ahead counts the tokens that follow, from 0; got {ahead}")


def _positions(pos_slice: int | slice | None, n_pos: int) -> range:
    there = range(n_pos)
    if isinstance(pos_slice, int):
        found = there[pos_slice:][:1] if -n_pos <= pos_slice < n_pos else range(0)
    else:
        found = there if pos_slice is None else there[pos_slice]
    if not found or found.step < 0:
        raise LensError(
            f"the run has positions 0 to {n_pos - 1}, read from first to last; got "
            f"pos_slice={pos_slice}"
        )
    return found


@dataclass(frozen=True)
class _Following:
    """The tokens that follow each position, and where there are any; `real`: what is no padding."""

    tokens: Int[Tensor, "batch pos ahead"]
    known: Bool[Tensor, "batch pos ahead"]
    real: Bool[Tensor, "batch pos"]


def _following(run: Inputs, positions: range, ahead: int) -> _Following:
    tokens = run["tokens"].cpu()
    mask = run.get("attention_mask")
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.cpu().bool()
    n_pos = tokens.shape[1]
    places = torch.tensor(positions)[:, None] + torch.arange(1, ahead + 1)
    inside = places.clamp(max=n_pos - 1)
    here = real[:, list(positions)]
    known = real[:, inside] & (places < n_pos) & here[..., None]
    return _Following(tokens[:, inside].long(), known, here)


# --- What comes of it ----------------------------------------------------------------------------


def _result(
    model: Any,
    run: Inputs,
    sites: list[str],
    positions: range,
    follows: _Following,
    found: dict[str, Tensor],
) -> LogitLens:
    """Numbers with what they are of; nothing where there is only padding, or nothing follows."""
    tokens = run["tokens"].cpu()
    logits = found.pop("logits", None)
    numbers = {name: _blanked(name, values, follows) for name, values in found.items()}
    return LogitLens(
        **numbers,
        sites=sites,
        positions=list(positions),
        tokens=tokens,
        real=follows.real,
        model=model.name,
        texts=_texts(model, tokens, numbers["top_tokens"], numbers["final_tokens"]),
        logits=logits,
    )


def _blanked(name: str, values: Tensor, follows: _Following) -> Tensor:
    """NaN, or -1 among ids, where there is nothing to read."""
    there = follows.known if name.startswith("ahead_") else follows.real
    if name.startswith("top_"):
        there = there[..., None]
    return torch.where(there, values, math.nan if values.is_floating_point() else -1)


def _texts(model: Any, *tokens: Tensor) -> dict[int, str]:
    """The text of every token that occurs; nothing without a tokenizer."""
    if model.tokenizer is None:
        return {}
    ids = sorted({one for ids in tokens for one in ids.unique().tolist()} - {-1})
    return dict(zip(ids, model.to_str_tokens(ids), strict=True))
