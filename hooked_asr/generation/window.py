"""One window of one or more recordings: decoded, judged, and decoded again where it must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.generation.beams import decode_beams
from hooked_asr.generation.loop import Decoded, Row, decode_rows
from hooked_asr.generation.options import DecodingOptions
from hooked_asr.generation.recorder import StepRecorder, rows_of
from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors, no_speech
from hooked_asr.generation.steps import Steps
from hooked_asr.shapes import Tokens
from hooked_asr.speech import token_compression_ratio

Patterns = Float[Tensor, "head _ audio"]


@dataclass(frozen=True)
class Watched:
    """What to keep of a decoding: hooks by name, and heads whose attention tells times."""

    names: tuple[str, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @property
    def pattern_heads(self) -> dict[str, list[int]]:
        """The heads to keep of each attention map."""
        kept: dict[str, list[int]] = {}
        for layer, head in self.alignment_heads:
            kept.setdefault(f"decoder.{layer}.cross_attn.hook_pattern", []).append(head)
        return kept


@dataclass(frozen=True, eq=False)
class Heard:
    """One row of a window, as it was accepted.

    `skipped`: likely nobody speaks. `patterns`: those of the alignment heads, a row for each
    position that was read up to the row's end.
    """

    row: Row
    temperature: float
    no_speech_prob: float | None
    compression_ratio: float
    skipped: bool
    patterns: Patterns | None


@dataclass(frozen=True, eq=False)
class DecodedWindow:
    """The rows of a window, all that was read and said in them, and what was watched."""

    heard: list[Heard]
    whole: Tokens
    activations: dict[str, Tensor]


def decode_window(
    model: Any,
    inputs: Mapping[str, Any],
    n_init: int,
    limit: int,
    options: DecodingOptions,
    watched: Watched,
    progress: bool = False,
) -> DecodedWindow:
    """Decode a window at each temperature in turn, until no row fails a threshold.

    `inputs`: a forward's, with the encoder's output as `audio`; `n_init`: how many tokens of the
    prompt there are from the start token on.
    """
    attempts: list[_Attempt] = []
    last: list[tuple[int, int]] = [(0, row) for row in range(len(inputs["tokens"]))]
    pending = list(range(len(last)))
    for temperature in options.temperatures:
        attempt = _Attempt.run(
            model, _rows(inputs, pending), n_init, limit, options, watched, temperature, progress
        )
        attempts.append(attempt)
        for place, row in enumerate(pending):
            last[row] = (len(attempts) - 1, place)
        pending = [row for place, row in enumerate(pending) if attempt.fails(place)]
        if not pending:
            break
    return _assembled(model, attempts, last)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """Some rows at one temperature."""

    options: DecodingOptions
    temperature: float
    decoded: Decoded
    ratios: list[float]
    no_speech: list[float | None]
    activations: dict[str, Tensor]
    patterns: list[Patterns | None]

    @classmethod
    def run(
        cls,
        model: Any,
        inputs: Mapping[str, Any],
        n_init: int,
        limit: int,
        options: DecodingOptions,
        watched: Watched,
        temperature: float,
        progress: bool,
    ) -> _Attempt:
        activations, patterns = StepRecorder(), StepRecorder(watched.pattern_heads)
        beams = options.num_beams > 1 and not temperature
        stepwise = model.has_hooks  # one of the caller's may know the step
        with _recorded(model, Watched() if beams else watched, activations, patterns):
            decoded = _decode(model, inputs, limit, options, temperature, progress)
        if beams and watched != Watched():  # the beam that won is read once more, by itself
            with _recorded(model, watched, activations, patterns):
                _read_again(model, inputs, limit, decoded.whole[:, :-1], stepwise)
        return cls(
            options=options,
            temperature=temperature,
            decoded=decoded,
            ratios=_compression_ratios(model, decoded),
            no_speech=no_speech(model, decoded.prompt_logits, inputs["tokens"].shape[1] - n_init),
            activations=activations.joined(),
            patterns=_alignments(patterns.joined(), watched, decoded, inputs["tokens"].shape[1]),
        )

    def fails(self, place: int) -> bool:
        """Whether a row is too repetitive or too unlikely, and not silence."""
        ratio, least = self.options.compression_ratio_threshold, self.options.logprob_threshold
        repetitive = ratio is not None and self.ratios[place] > ratio
        unlikely = least is not None and self.decoded.rows[place].avg_logprob < least
        return (repetitive or unlikely) and not self.silent(place)

    def silent(self, place: int) -> bool:
        """Whether a row is so unlikely, and silence so likely, that it is left out."""
        most, least = self.options.no_speech_threshold, self.options.logprob_threshold
        probability = self.no_speech[place]
        if most is None or least is None or probability is None:
            return False
        return self.decoded.rows[place].avg_logprob < least and probability > most

    def heard(self, place: int) -> Heard:
        return Heard(
            row=self.decoded.rows[place],
            temperature=self.temperature,
            no_speech_prob=self.no_speech[place],
            compression_ratio=self.ratios[place],
            skipped=self.silent(place),
            patterns=self.patterns[place],
        )


def _decode(
    model: Any,
    inputs: Mapping[str, Any],
    limit: int,
    options: DecodingOptions,
    temperature: float,
    progress: bool,
) -> Decoded:
    prompt = inputs["tokens"]
    mask = inputs.get("attention_mask")
    beams = 1 if temperature else options.num_beams
    padding = None if mask is None else (mask == 0).sum(1).repeat_interleave(beams)
    processors = logits_processors(
        model.generation_config,
        PromptShape(prompt.shape[1], str(prompt.device), padding),
        options.timestamps,
        temperature,
    )
    if beams > 1:
        return decode_beams(model, inputs, limit, processors, options.num_beams, progress)
    return decode_rows(model, inputs, limit, processors, temperature, progress)


def _read_again(
    model: Any, inputs: Mapping[str, Any], limit: int, read: Tokens, stepwise: bool
) -> None:
    """One pass over all that was read, or the passes in which it was read."""
    steps = Steps(model, inputs, limit)
    for length in range(inputs["tokens"].shape[1] if stepwise else read.shape[1], read.shape[1]):
        steps(read[:, :length])
    steps(read)


@contextmanager
def _recorded(
    model: Any, watched: Watched, activations: StepRecorder, patterns: StepRecorder
) -> Iterator[None]:
    hooks: list[Any] = [(list(watched.names), activations)] if watched.names else []
    if watched.alignment_heads:
        hooks.append((list(watched.pattern_heads), patterns))
    with model.hooks(hooks):
        yield


def _compression_ratios(model: Any, decoded: Decoded) -> list[float]:
    """Of each row's tokens, its end token among them, as the reference counts."""
    end = end_tokens(model.generation_config)[:1]
    rows = [row.tokens + (end if row.ended else []) for row in decoded.rows]
    return [token_compression_ratio(row, model.config.d_vocab) for row in rows]


def _alignments(
    maps: Mapping[str, Tensor], watched: Watched, decoded: Decoded, n_prompt: int
) -> list[Patterns | None]:
    """The alignment heads' maps of each row, up to its own end."""
    if not maps:
        return [None] * len(decoded.rows)
    chosen = []
    for layer, head in watched.alignment_heads:
        name = f"decoder.{layer}.cross_attn.hook_pattern"
        chosen.append(maps[name][:, watched.pattern_heads[name].index(head)])
    stacked = torch.stack(chosen, dim=1)
    return [stacked[i, :, : n_prompt + len(row.tokens)] for i, row in enumerate(decoded.rows)]


def _rows(inputs: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    if rows == list(range(len(inputs["tokens"]))):
        return dict(inputs)
    return {name: value[rows] for name, value in inputs.items()}


def _assembled(model: Any, attempts: list[_Attempt], last: list[tuple[int, int]]) -> DecodedWindow:
    """The accepted rows of all attempts, in the order of the window."""
    heard = [attempts[which].heard(place) for which, place in last]
    if all(which == 0 for which, _ in last):
        first = attempts[0]
        return DecodedWindow(heard, first.decoded.whole, first.activations)
    longest = max(attempts[which].decoded.whole.shape[1] for which, _ in last)
    padding = (end_tokens(model.generation_config) or [0])[0]
    whole = torch.stack(
        [_padded(attempts[which].decoded.whole[place], longest, padding) for which, place in last]
    )
    activations = {}
    for name in attempts[0].activations:
        spec = model.hook_table[name]
        rows = [
            rows_of(spec, attempts[which].activations[name], [place], longest - 1)
            for which, place in last
        ]
        activations[name] = torch.cat(rows)
    return DecodedWindow(heard, whole, activations)


def _padded(row: Tensor, length: int, padding: int) -> Tensor:
    return F.pad(row, (0, length - len(row)), value=padding)
