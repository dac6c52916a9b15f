"""Beam search: the likeliest transcript among several that are followed side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

from hooked_asr.generation.hypotheses import (
    NEVER,
    Hypotheses,
    Scores,
    likeliest_continuations,
)
from hooked_asr.generation.loop import Decoded, Row, check_room
from hooked_asr.generation.rules import end_tokens
from hooked_asr.generation.steps import Steps
from hooked_asr.shapes import Tokens


def decode_beams(
    model: Any,
    inputs: Mapping[str, Any],
    limit: int,
    processors: LogitsProcessorList,
    num_beams: int,
    progress: bool = False,
) -> Decoded:
    """Decode by beam search, and give the best hypothesis of each clip.

    As `decode_rows`, but that processors and hooks see `[clip*beam ...]` rows, a clip's beams one
    after another, behind the prompt, which is run once for each clip. Length penalty and early
    stopping are the checkpoint's.

    A token's log-probability is the one at the step that chose it, in the beam that it continues:
    log-softmax of the scores that the processors return (themselves processed log-probabilities),
    before the beam's own score is added. What the rules forbid counts for nothing in it.
    `avg_logprob` is the mean over the new tokens, the end token included, without length penalty.

    Raises `GenerationError` for a prompt that fills the limit, or is padded behind its tokens.
    """
    prompt = inputs["tokens"].to(model.device)
    check_room(model, prompt.shape[1], limit)
    steps = Steps(model, inputs, limit)
    search = _BeamSearch(prompt, num_beams, limit, _Rules.of(model.generation_config), processors)
    with tqdm(
        total=limit - prompt.shape[1], unit="token", disable=not progress, leave=False
    ) as bar:
        prompt_logits = steps(prompt)
        # A row for each beam only now: prompt and audio are read once for each clip.
        steps.reorder(search.rows)
        search.add(prompt_logits[search.rows, -1])
        bar.update()
        while not search.over:
            steps.reorder(search.rows, audio=False)  # the same clip's
            search.add(steps(search.tokens)[:, -1])
            bar.update()
    return Decoded(*search.best(), prompt_logits)


@dataclass(frozen=True)
class _Rules:
    """What a generation config says of a search."""

    ends: list[int]
    padding: int
    length_penalty: float
    early_stopping: bool | str

    @classmethod
    def of(cls, rules: Any) -> _Rules:
        ends = end_tokens(rules)
        padding = (getattr(rules, "pad_token_id", None), *ends, 0)
        penalty = getattr(rules, "length_penalty", None)
        return cls(
            ends=ends,
            padding=next(token for token in padding if token is not None),
            length_penalty=1.0 if penalty is None else penalty,
            early_stopping=getattr(rules, "early_stopping", None) or False,
        )


class _BeamSearch:
    """The beams of all clips, and the best hypotheses that are done.

    `rows`: for each beam, the row of the step before that it continues.
    """

    def __init__(
        self,
        prompt: Tokens,
        num_beams: int,
        limit: int,
        rules: _Rules,
        processors: LogitsProcessorList,
    ) -> None:
        self._n_prompt, self._num_beams, self._limit = prompt.shape[1], num_beams, limit
        self._rules, self._processors = rules, processors
        self._ends = torch.tensor(rules.ends, dtype=torch.long, device=prompt.device)
        self._finished = Hypotheses.of_prompt(prompt, num_beams)
        # Before the first token all beams are the same: only the first may be continued.
        scores = self._finished.scores.clone()
        scores[:, 0] = 0.0
        self._beams = replace(self._finished, scores=scores)
        self._hopeful = torch.ones(len(prompt), 1, dtype=torch.bool, device=prompt.device)
        self.rows = torch.arange(len(prompt), device=prompt.device).repeat_interleave(num_beams)
        self.over = False

    @property
    def tokens(self) -> Tokens:
        """Of each beam."""
        return self._beams.tokens.flatten(0, 1)

    def add(self, logits: Float[Tensor, "row d_vocab"]) -> None:
        """Go on by one token, given the logits of each beam's next."""
        candidates, parents = self._candidates(self._scores(logits))
        self._finish(candidates)
        self._continue(candidates, parents)
        self._hopeful = self._hopeful & self._can_improve()
        self.over = self._is_over(candidates)

    def _scores(self, logits: Float[Tensor, "row d_vocab"]) -> Scores:
        tokens: Any = self.tokens
        # The reference's order: the rules judge log-probabilities, not logits.
        scores: Any = self._processors(tokens, logits.float().log_softmax(-1))
        return scores.unflatten(0, (-1, self._num_beams))

    def _candidates(self, scores: Scores) -> tuple[Hypotheses, Int[Tensor, "clip _"]]:
        # So many that enough are left to go on with when every beam comes to each of its ends.
        n = self._num_beams * (1 + max(1, len(self._rules.ends)))
        found, parents = likeliest_continuations(self._beams, scores, n)
        done = torch.isin(found.tokens[..., -1], self._ends)
        if found.tokens.shape[-1] >= self._limit:
            done = torch.ones_like(done)
        return replace(found, done=done), parents

    def _finish(self, candidates: Hypotheses) -> None:
        """Keep the best of what was done before and what is now."""
        # Those behind the first stand in for finished beams, and may not finish themselves.
        place = torch.arange(candidates.done.shape[1], device=candidates.done.device)
        done = candidates.done & (place < self._num_beams)
        scores = self._penalised(candidates.scores, candidates.tokens.shape[-1])
        for barred in (self._full(), ~self._hopeful, ~done):
            scores = scores + barred * NEVER
        new = replace(candidates, scores=scores, done=done)
        known = self._finished.padded(self._rules.padding).beside(new)
        self._finished = known.picked(known.scores.topk(self._num_beams).indices)

    def _continue(self, candidates: Hypotheses, parents: Int[Tensor, "clip _"]) -> None:
        """Go on with the best of what is not done."""
        candidates = replace(candidates, scores=candidates.scores + candidates.done * NEVER)
        best = candidates.scores.topk(self._num_beams).indices
        self._beams = candidates.picked(best)
        first = torch.arange(len(best), device=best.device) * self._num_beams
        self.rows = (parents.gather(1, best) + first[:, None]).flatten()

    def _can_improve(self) -> Bool[Tensor, "clip 1"]:
        """Whether the best beam may yet score better than the worst finished hypothesis.

        A guess, the reference's: that its score is what it will be at the end.
        """
        exhaustive = self._rules.early_stopping == "never" and self._rules.length_penalty > 0
        length = self._limit if exhaustive else self._beams.tokens.shape[-1]
        reachable = self._penalised(self._beams.scores[:, :1], length)
        worst = self._finished.scores.amin(1, keepdim=True)
        worst = worst.where(self._finished.done, NEVER)
        return (reachable > worst).any(1, keepdim=True)

    def _is_over(self, candidates: Hypotheses) -> bool:
        stopped_early = self._full().all()
        return bool(~self._hopeful.any() | stopped_early | candidates.done.all())

    def _full(self) -> Bool[Tensor, "clip 1"]:
        """Whether a clip has enough finished hypotheses, where that ends its search."""
        enough = self._finished.done.all(1, keepdim=True)
        return enough & (self._rules.early_stopping is True)

    def _penalised(self, scores: Float[Tensor, "clip _"], n_tokens: int) -> Float[Tensor, "clip _"]:
        return scores / (n_tokens - self._n_prompt) ** self._rules.length_penalty

    def best(self) -> tuple[list[Row], Tokens]:
        """The best finished hypothesis of each clip, as a row and as prompt and tokens."""
        finished = self._finished
        tokens, n_tokens = finished.tokens[:, 0], finished.n_tokens[:, 0].tolist()
        logprobs = finished.logprobs[:, 0].tolist()
        rows = [self._row(*one) for one in zip(tokens.tolist(), n_tokens, logprobs, strict=True)]
        return rows, tokens[:, : max(n_tokens)]

    def _row(self, tokens: list[int], n_tokens: int, logprobs: list[float]) -> Row:
        new = tokens[self._n_prompt : n_tokens]
        ended = bool(new) and new[-1] in self._rules.ends
        said = tuple(logprobs[: len(new)])
        mean = fmean(said) if said else float("-inf")
        return Row(new[:-1] if ended else new, ended, mean, said)
