"""What has passed through the model: activations of a run, or those that a decoding kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_asr.cache import ActivationCache
from hooked_asr.generation import Generation, Window, end_tokens
from hooked_asr.hooks import Hooks
from hooked_asr.lenses.errors import LensError
from hooked_asr.names import select
from hooked_asr.patching.operations import Run, as_inputs

# A run's inputs, for one forward; or what `generate` gave, whose activations were kept.
Readable = Run | Generation[Any] | Window

LOGITS = "unembed.hook_out"


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run or a decoding left at the positions that are read.

    - `tokens`: of a run; of a decoding, prompts and all that was said behind them.
    - `known`: which of these are no padding.
    - `positions`: those that are read; `real`: where they are no padding. Where a decoding has said
      its end token, that token is `known`, but nothing `real` is behind it.
    - `logits`: the run's own; None where a decoding did not keep them.
    """

    tokens: Int[Tensor, "batch _"]
    known: Bool[Tensor, "batch _"]
    positions: range
    real: Bool[Tensor, "batch pos"]
    cache: ActivationCache
    logits: Float[Tensor, "batch pos d_vocab"] | None


def trace(
    model: Any,
    inputs: Readable,
    hooks: Sequence[str],
    pos_slice: int | slice | None = None,
    fwd_hooks: Hooks = (),
) -> Trace:
    """One forward's activations at `hooks` (names and globs), or those that a decoding kept.

    Raises `LensError` for positions that are not there, activations that were not kept, or hooks
    that come too late.
    """
    if isinstance(inputs, Generation | Window):
        if list(fwd_hooks):
            raise LensError(
                "this decoding is over, and no hook can act in it any more: give fwd_hooks to "
                "generate, and read what it then gives"
            )
        return _of_decoding(model, _window(inputs), hooks, pos_slice)
    run = as_inputs(inputs)
    tokens = run["tokens"].cpu()
    mask = run.get("attention_mask")
    known = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.cpu().bool()
    positions = where_read(pos_slice, tokens.shape[1])
    where = slice(positions.start, positions.stop, positions.step)
    logits, cache = model.run_with_cache(
        **run, names_filter=list(hooks), pos_slice=where, fwd_hooks=fwd_hooks
    )
    return Trace(tokens, known, positions, known[:, where], cache, logits[:, where])


def kept_by(inputs: Readable) -> Mapping[str, Tensor] | None:
    """The activations that a decoding kept; None for the inputs of a run."""
    if not isinstance(inputs, Generation | Window):
        return None
    return _window(inputs).cache or {}


def _window(decoding: Generation[Any] | Window) -> Window:
    if isinstance(decoding, Window):
        return decoding
    if len(decoding.windows) != 1:
        raise LensError(
            f"this decoding took {len(decoding.windows)} windows: read one of them at a time, as "
            "in windows[0]"
        )
    return decoding.windows[0]


def _of_decoding(
    model: Any, window: Window, hooks: Sequence[str], pos_slice: int | slice | None
) -> Trace:
    tokens = window.whole_tokens.cpu()
    whole: Mapping[str, Tensor] = window.cache or {}
    _check_kept(model, whole, hooks)
    known, read = _spoken(model, tokens)
    positions = where_read(pos_slice, tokens.shape[1] - 1)  # nothing was read behind the last
    where = slice(positions.start, positions.stop, positions.step)
    by_position = [name for name in whole if model.hook_table[name].axes[1] == "pos"]
    there = {name: whole[name][:, where] for name in by_position}
    cache, logits = ActivationCache(there, model), there.get(LOGITS)
    return Trace(tokens, known, positions, read[:, where], cache, logits)


def _check_kept(model: Any, cache: Mapping[str, Tensor], hooks: Sequence[str]) -> None:
    """Activations at `hooks`, and what the decoding's own logits are, or come from."""
    needed = select(list(hooks), model.hook_table)
    if last_stream(model) not in needed and last_stream(model) not in cache:
        needed, hooks = [*needed, LOGITS], [*hooks, LOGITS]
    missing = [name for name in needed if name not in cache]
    if missing:
        raise LensError(
            f"the decoding kept {len(needed) - len(missing)} of the {len(needed)} activations "
            f"needed, and not {missing[0]}: decode with generate(…, names_filter={list(hooks)})"
        )


def _spoken(
    model: Any, tokens: Int[Tensor, "batch pos"]
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch _"]]:
    """Which tokens of a decoding are no padding, and at which positions it spoke.

    Padding is what stands behind a row's end token, and in front of a shorter prompt.
    """
    ends = end_tokens(model.generation_config)
    padding = {*ends, getattr(model.generation_config, "pad_token_id", None)}
    rows = tokens.tolist()
    starts = [_leading(row, padding) for row in rows]
    first = [start - min(starts) for start in starts]  # the longest prompt has none
    stops = []
    for row in rows:
        behind = range(len(row) - _leading(row[::-1], padding), len(row))
        stops.append(next((i for i in behind if row[i] in ends), len(row)))
    place = torch.arange(tokens.shape[1])
    begun = place >= torch.tensor(first)[:, None]
    stop = torch.tensor(stops)[:, None]
    return begun & (place <= stop), (begun & (place < stop))[:, :-1]


def _leading(row: Sequence[int], padding: set[int | None]) -> int:
    """How many tokens at the row's beginning may be padding."""
    return next((i for i, token in enumerate(row) if token not in padding), len(row))


def where_read(pos_slice: int | slice | None, n_pos: int) -> range:
    """The positions asked for.

    Raises `LensError` where there are none.
    """
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


def last_stream(model: Any) -> str:
    """The hook of the stream that leaves the decoder's last layer."""
    return f"decoder.{model.config.decoder.n_layers - 1}.hook_resid_post"


def texts_of(model: Any, *tokens: Int[Tensor, "..."]) -> dict[int, str]:
    """The text of every token that occurs, but -1; nothing without a tokenizer."""
    if model.tokenizer is None:
        return {}
    ids = sorted({one for ids in tokens for one in ids.unique().tolist()} - {-1})
    return dict(zip(ids, model.to_str_tokens(ids), strict=True))
