"""Token after token: the likeliest at each step, or one drawn at a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

from hooked_asr.generation.rules import PromptShape, end_tokens, logits_processors
from hooked_asr.generation.steps import GenerationError, Steps
from hooked_asr.shapes import Tokens

Scores = Float[Tensor, "batch d_vocab"]


@dataclass(frozen=True)
class Row:
    """What was said in one row.

    - `tokens`: the new ones, without the end token; `ended`: whether there was one.
    - `avg_logprob`: mean log-probability (nats) of the tokens, the end token included, under the
      rules but at temperature 1; `logprobs`: that of each.
    """

    tokens: list[int]
    ended: bool
    avg_logprob: float
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Decoded:
    """Rows, and what the decoder read and said in all of them.

    `whole` `[batch pos]` is prompt and tokens; what a row has behind its end is padding.
    `prompt_logits` are those of the prompt's positions `[batch pos d_vocab]`.
    """

    rows: list[Row]
    whole: Tokens
    prompt_logits: Float[Tensor, "batch _ d_vocab"]


def decode_rows(
    model: Any,
    inputs: Mapping[str, Any],
    limit: int,
    processors: LogitsProcessorList | None = None,
    temperature: float = 0.0,
    progress: bool = False,
) -> Decoded:
    """Decode until every row has come to an end token, or has `limit` tokens with its prompt.

    - `inputs`: a forward's (`tokens` the prompt), with the encoder's output as `audio`.
    - `processors`: the rules on what may be said; by default the checkpoint's.
    - `temperature`: 0 for the likeliest token, or that of the distribution to draw from, with
      PyTorch's global generator, as the reference draws.

    Raises `GenerationError` for a prompt that fills the limit, or is padded behind its tokens.
    """
    prompt = inputs["tokens"].to(model.device)
    check_room(model, prompt.shape[1], limit)
    steps = Steps(model, inputs, limit)
    if processors is None:
        shape = PromptShape(prompt.shape[1], str(prompt.device), steps.padding)
        processors = logits_processors(model.generation_config, shape)
    said = _Said(prompt, model.generation_config)
    prompt_logits = None
    with tqdm(
        total=limit - prompt.shape[1], unit="token", disable=not progress, leave=False
    ) as bar:
        while said.tokens.shape[1] < limit and not said.all_ended:
            logits = steps(said.tokens)
            prompt_logits = logits if prompt_logits is None else prompt_logits
            scores = allowed(processors, said.tokens, logits[:, -1])
            said.add(_pick(scores, temperature), scores * temperature if temperature else scores)
            bar.update()
    assert prompt_logits is not None  # check_room leaves room for a step
    return Decoded(said.rows(), said.tokens, prompt_logits)


def greedy(
    model: Any, inputs: Mapping[str, Any], limit: int | None = None, progress: bool = False
) -> list[list[int]]:
    """The new tokens of each row, the likeliest at each step, by the checkpoint's own rules.

    As `decode_rows`; `limit` is by default what the checkpoint allows.
    """
    limit = model.token_limit(inputs["tokens"].shape[1]) if limit is None else limit
    return [row.tokens for row in decode_rows(model, inputs, limit, progress=progress).rows]


def allowed(
    processors: LogitsProcessorList,
    tokens: Int[Tensor, "batch _"],
    logits: Float[Tensor, "batch d_vocab"],
) -> Scores:
    """What the rules make of the next token's logits, behind these tokens."""
    # One by one: as a list they would have their signatures inspected at every step.
    scores: Any = logits.float()
    before: Any = tokens
    for processor in processors:
        scores = processor(before, scores)
    return scores


def check_room(model: Any, n_prompt: int, limit: int) -> None:
    """Raises `GenerationError` where prompt and limit leave nothing to be decoded."""
    n_ctx: int = model.config.decoder.n_ctx
    if not n_prompt < limit <= n_ctx:
        raise GenerationError(
            f"the limit counts the {n_prompt} tokens of the prompt too, and the decoder has "
            f"{n_ctx} positions; got {limit}"
        )


def _pick(scores: Scores, temperature: float) -> Int[Tensor, "batch 1"]:
    if not temperature:
        return scores.argmax(-1, keepdim=True)
    return torch.multinomial(scores.softmax(-1), num_samples=1)


class _Said:
    """The tokens of all rows so far, which of them have ended, and how likely they were."""

    def __init__(self, prompt: Tokens, rules: Any) -> None:
        self.tokens = prompt
        self._n_prompt = prompt.shape[1]
        self._ends = end_tokens(rules)
        padding = (getattr(rules, "pad_token_id", None), *self._ends, 0)
        self._padding = next(token for token in padding if token is not None)
        self._ended = [False] * len(prompt)
        self._logprobs: list[Float[Tensor, "batch 1"]] = []

    @property
    def all_ended(self) -> bool:
        return all(self._ended)

    def add(self, new: Int[Tensor, "batch 1"], scores: Scores) -> None:
        self._logprobs.append(scores.log_softmax(-1).gather(1, new))
        if any(self._ended):  # a row that has ended runs on beside the others, on padding
            ended = new.new_tensor(self._ended, dtype=torch.bool)
            new = new.masked_fill(ended[:, None], self._padding)
        ends = [token in self._ends for (token,) in new.tolist()]
        self._ended = [a or b for a, b in zip(self._ended, ends, strict=True)]
        self.tokens = torch.cat([self.tokens, new], dim=1)

    def rows(self) -> list[Row]:
        new = self.tokens[:, self._n_prompt :].tolist()
        logprobs = torch.cat(self._logprobs, dim=1).tolist()
        return [self._row(*one) for one in zip(new, logprobs, strict=True)]

    def _row(self, tokens: list[int], logprobs: list[float]) -> Row:
        ends = [i for i, token in enumerate(tokens) if token in self._ends]
        n_said = ends[0] if ends else len(tokens)
        sure = tuple(logprobs[: n_said + bool(ends)])
        return Row(tokens[:n_said], bool(ends), fmean(sure), sure)
