"""The cross-attention lens: what each head of the decoder reads of the sound, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr import timing
from hooked_asr.components.attention import Attention
from hooked_asr.hooks import Hooks
from hooked_asr.lenses.cross_attention_inputs import (
    Clips,
    chosen,
    clips_of,
    forwarded,
    transcript_of,
)
from hooked_asr.lenses.cross_attention_result import CrossAttentionLens
from hooked_asr.lenses.cross_attention_statistics import centre, entropy, monotonicity, peak
from hooked_asr.lenses.trace import texts_of, where_read
from hooked_asr.patching.operations import Run, as_inputs
from hooked_asr.speech import alignment_scores

# Positions that the median filter of `alignment_scores` sees, of either width: some 0.13 s.
_MEDIAN_WIDTHS = {"audio": 7, "pooled": 3}


@torch.no_grad()
def cross_attention_lens(
    model: Any,
    inputs: Run,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    pos_slice: int | slice | None = None,
    durations: float | Sequence[float] | None = None,
    n_prompt: int | Sequence[int] | None = None,
    keep_maps: bool = True,
    fwd_hooks: Hooks = (),
    progress: bool = True,
) -> CrossAttentionLens:
    """Where in the recording each head of the decoder looks, at every position of the transcript.

        lens = cross_attention_lens(model, model.to_inputs("clip.wav", text=text), durations=3.2)
        lens.plot(), lens.plot(layer=2, head=4), lens.heads_table()
        model.generation_config.alignment_heads = lens.alignment_heads(k=6)

    Whisper's cross-attention; for Qwen2-Audio, self-attention from the decoder's positions to those
    that hold the audio (a position before them, or among them, sees none or only the first of
    them).

    - `inputs`: of one run, as `model.to_inputs` gives them, or a pair of log-mel frames and tokens.
      `attention_mask` tells padding among the tokens; `mel_mask` `[clip frame]` the sound's end.
    - `layers`, `heads`: which to read; by default all.
    - `pos_slice`: read only these positions.
    - `durations`: of each clip, or of all (s), where no `mel_mask` tells. Whisper hears a whole
      window, and its heads may rest in the silence behind the end: that is then left out, and
      `share` says how much it was.
    - `n_prompt`: tokens before the transcript in each row, or in all, without padding. By default
      it begins behind Whisper's start token; for Qwen2-Audio behind the clip and the header of the
      answer in a chat. Special tokens are no text in any case.
    - `keep_maps`: keep the maps themselves, float32 on the CPU: 4 bytes for each of layers * heads
      * clips * positions * audio (192 MB for all 640 heads of a Whisper large and 50 tokens). They
      are needed for figures of a head, and for alignment scores. Without them, no map outlives its
      layer.
    - `fwd_hooks`: read a run with these attached.

    It takes one forward, which ends behind the last layer read where no hooks are given.

    Raises `LensError` for layers, heads or positions that are not there, prompts without a clip, or
    durations that do not fit.

    Source of `norms`: "Attention is Not Only a Weight" (2020), section 3.
    """
    run = as_inputs(inputs)
    stack = model.config.decoder
    clips = clips_of(model, run, durations)
    positions = where_read(pos_slice, run["tokens"].shape[1])
    reader = _Reader(
        model=model,
        clips=clips,
        layers=chosen(layers, stack.n_layers, "layer"),
        heads=chosen(heads, stack.n_heads, "head"),
        positions=positions,
        keep_maps=keep_maps,
    )
    real, text = (one[:, list(positions)] for one in transcript_of(model, run, clips, n_prompt))
    attached = list(fwd_hooks)
    # Hooks that are given are to act wherever they are.
    end = {} if attached else {"stop_at": f"decoder.{reader.layers[-1] + 1}"}
    with tqdm(
        total=len(reader.layers), desc="cross-attention", unit="layer", disable=not progress
    ) as bar:
        reader.bar = bar
        given = forwarded(model, run)
        model.run_with_hooks(**given, **end, fwd_hooks=[*attached, *reader.hooks])
    return _result(reader, run["tokens"].cpu(), real, text)


@dataclass
class _Reader:
    """Hook functions that reduce a layer's attention as it comes by."""

    model: Any
    clips: Clips
    layers: list[int]
    heads: list[int]
    positions: range
    keep_maps: bool
    bar: Any = None
    norms: dict[int, Float[Tensor, "head clip audio"]] = field(default_factory=dict)
    found: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def hooks(self) -> list[tuple[list[str], Any]]:
        part = "attn" if self.model.config.prefix else "cross_attn"
        names = [f"decoder.{layer}.{part}.hook_" for layer in self.layers]
        return [
            ([f"{name}v" for name in names], self.keep_values),
            ([f"{name}pattern" for name in names], self.keep_pattern),
        ]

    @property
    def seconds(self) -> Float[Tensor, " audio"]:
        starts = [timing.seconds(i, self.clips.clock)[0] for i in range(self.clips.longest)]
        return torch.tensor(starts)

    def keep_values(self, v: Float[Tensor, "batch key kv_head d_head"], hook: Any) -> None:
        norms = _value_norms(v, self._attention(hook))[:, self.heads]
        n_rows = max(self.clips.rows) + 1
        if len(norms) < n_rows:  # one clip for all rows
            norms = norms.expand(n_rows, -1, -1)
        self.norms[_layer(hook)] = self.clips.cut(norms)

    def keep_pattern(self, pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
        where = slice(self.positions.start, self.positions.stop, self.positions.step)
        weights = self.clips.cut(pattern[:, self.heads, where])
        weights = weights.float()  # in half precision, sums over the sound would be rounded away
        norms = self.norms[_layer(hook)].to(weights.device)
        numbers = _numbers(weights, norms, self.seconds.to(weights.device))
        if self.keep_maps:
            numbers |= {"pattern": weights, "value_norms": norms}
        self.found[_layer(hook)] = {name: one.cpu() for name, one in numbers.items()}
        self.bar.update()

    def stacked(self) -> dict[str, Tensor]:
        """`[layer head clip ...]` of everything."""
        parts = [self.found.pop(layer) for layer in self.layers]
        return {name: torch.stack([one.pop(name) for one in parts]) for name in list(parts[0])}

    def _attention(self, hook: Any) -> Attention:
        block = self.model.decoder[_layer(hook)]
        attention: Attention = block.attn if self.model.config.prefix else block.cross_attn
        return attention


def _layer(hook: Any) -> int:
    return int(hook.name.split(".")[1])


def _value_norms(
    v: Float[Tensor, "batch key kv_head d_head"], attention: Attention
) -> Float[Tensor, "batch head key"]:
    """‖v W_O‖ of each head.

    By ‖v W_O‖² = v (W_O W_Oᵀ) v, so that nothing is as wide as the stream.
    """
    W_O = attention.W_O.float()
    gram = einsum(W_O, W_O, "head i d_model, head j d_model -> head i j")
    v = v.float().repeat_interleave(attention.group_size, dim=2)
    written = einsum(v, gram, "batch key head i, head i j -> batch key head j")
    squares = einsum(written, v, "batch key head j, batch key head j -> batch head key")
    return squares.clamp(min=0).sqrt()


def _numbers(
    weights: Float[Tensor, "head clip pos audio"],
    norms: Float[Tensor, "head clip audio"],
    seconds: Float[Tensor, " audio"],
) -> dict[str, Float[Tensor, "head clip pos"]]:
    """By the fields of `CrossAttentionLens`."""
    return {
        "share": weights.sum(-1),
        "entropy": entropy(weights),
        "norm_entropy": entropy(weights * norms[:, :, None]),
        "centre": centre(weights, seconds),
        "peak": peak(weights, seconds),
    }


# --- What comes of it -----------------------------------------------------------------------------


def _result(
    reader: _Reader,
    tokens: Tensor,
    real: Bool[Tensor, "clip pos"],
    text: Bool[Tensor, "clip pos"],
) -> CrossAttentionLens:
    found, clips = reader.stacked(), reader.clips
    for name, values in found.items():
        if name != "value_norms":  # which are of no position
            at = (slice(None), slice(None), ~real)
            values[at] = math.nan
    monotone = [monotonicity(found["centre"][:, :, i, row]) for i, row in enumerate(text)]
    aligned = [_scores(found, i, row, clips) for i, row in enumerate(text)]
    for i, n in enumerate(clips.lengths):
        for name in ("pattern", "value_norms"):
            if name in found:
                found[name][:, :, i, ..., n:] = math.nan
    own = tokens[clips.rows]
    model = reader.model
    return CrossAttentionLens(
        **found,
        monotonicity=torch.stack(monotone, -1),
        alignment=torch.stack(aligned, -1),
        layers=reader.layers,
        heads=reader.heads,
        positions=list(reader.positions),
        rows=clips.rows,
        n_audio=clips.lengths,
        seconds=reader.seconds,
        tokens=own,
        real=real,
        text=text,
        model=model.name,
        texts=texts_of(model, own),
    )


def _scores(
    found: dict[str, Tensor], clip: int, text: Bool[Tensor, " pos"], clips: Clips
) -> Float[Tensor, "layer head"]:
    """Alignment scores of one clip; NaN without maps, or without a word."""
    if "pattern" not in found or not text.any():
        return torch.full(found["share"].shape[:2], math.nan)
    maps = found["pattern"][:, :, clip, text, : clips.lengths[clip]]
    return alignment_scores(maps, _MEDIAN_WIDTHS[clips.clock])
