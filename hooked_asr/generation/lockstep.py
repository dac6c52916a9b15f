"""References that are decoded beside a target, on the same tokens, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.generation.steps import Beside, Steps
from hooked_asr.shapes import Tokens

Activation = Float[Tensor, "..."]


class Lockstep:
    """A source for interventions: another recording, which `generate` decodes beside the target.

        noisy_but_one_head = replace("decoder.3.cross_attn.5", Lockstep("clean.flac"))
        model.generate("noisy.flac", interventions=[noisy_but_one_head])

    Before each of the target's own passes, the reference runs on the target's tokens, with its own
    encoder output, its own keys and values, and without any hooks of the caller's. What it computes
    at an intervention's hook, at these very positions, is what comes in. It takes one more forward
    for each step.

    `audio`, `sample_rate`, `mel_mask`: what `generate` takes, one recording for all of the target's
    or as many, each at least as long. For Qwen2-Audio, `audio` is what `to_inputs` gives, of as
    many tokens as the target's.
    """

    def __init__(
        self, audio: Any, sample_rate: int | None = None, mel_mask: Tensor | None = None
    ) -> None:
        self.audio, self.sample_rate, self.mel_mask = audio, sample_rate, mel_mask
        self._passage = Passage()

    def has_passed(self, name: str) -> bool:
        """Whether the reference was at a hook in the pass that the target is in now."""
        return name in self._passage.latest

    def now(self, name: str) -> Activation:
        """What the reference computes where the target is now."""
        return self._passage.latest[name]

    def mean(self, name: str) -> Activation:
        """Each row's mean over all positions that the reference has passed so far."""
        return self._passage.mean(name)

    @contextmanager
    def at(self, passage: Passage) -> Iterator[None]:
        """Be read from this passage for the length of a block: decodings may nest."""
        before, self._passage = self._passage, passage
        try:
            yield
        finally:
            self._passage = before


class Passage:
    """What a reference computes on its way: a hook function that keeps the latest, and means."""

    def __init__(self) -> None:
        self.latest: dict[str, Activation] = {}
        self._sums: dict[str, Activation] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, x: Activation, hook: Any) -> None:
        x, name, axis = x.detach(), hook.name, hook.spec.position_axis
        # Half precision would lose count over many positions.
        new = x.to(torch.promote_types(x.dtype, torch.float32)).sum(axis, keepdim=True)
        if name in self._sums:
            before = self._sums[name]
            if hook.spec.axes[-1] == "key":  # an early query has fewer keys than the last
                nothing = 0.0 if hook.spec.leaf == "hook_pattern" else float("-inf")
                before = F.pad(before, (0, new.shape[-1] - before.shape[-1]), value=nothing)
            new = before + new
        self.latest[name], self._sums[name] = x, new
        self._counts[name] = self._counts.get(name, 0) + x.shape[axis]

    def mean(self, name: str) -> Activation:
        return self._sums[name] / self._counts[name]

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order."""
        self._sums = {name: total[rows] for name, total in self._sums.items()}


@dataclass(frozen=True, eq=False)
class Reference:
    """A `Lockstep` in a model, and the hooks at which it is read."""

    model: Any
    lockstep: Lockstep
    names: list[str]

    @contextmanager
    def alone(self, passage: Passage) -> Iterator[None]:
        """Run without the caller's hooks, and keep what is read."""
        with self.model.unhooked(), self.model.hooks([(self.names, passage)]):
            yield


def references(model: Any) -> list[Reference]:
    """A reference for each `Lockstep` that a function attached to the model reads from."""
    read: dict[Lockstep, list[str]] = {}
    for name, point in model.hook_points.items():
        for attached in point.fwd_fns:
            lockstep = getattr(attached.fn, "lockstep", None)
            if lockstep is not None:
                read.setdefault(lockstep, []).append(name)
    return [Reference(model, lockstep, names) for lockstep, names in read.items()]


@contextmanager
def encoding_beside(
    inputs: Iterable[tuple[Reference, Mapping[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Encode each reference's inputs, and let it be read while the target's are encoded.

    Gives what a decoding's inputs have in addition (see `Steps`): nothing without references.
    """
    encoded = []
    with ExitStack() as read:
        for reference, own in inputs:
            passage = Passage()
            with reference.alone(passage):
                encoded.append((reference, reference.model.encoded(own)))
            read.enter_context(reference.lockstep.at(passage))
        yield {"beside": Companions(encoded)} if encoded else {}


class Companions:
    """References on their way through one decoding; `heard` has what is theirs of its inputs.

    Rows of it are taken as of any other input.
    """

    def __init__(self, heard: Sequence[tuple[Reference, Mapping[str, Any]]]) -> None:
        self._heard = heard

    def __getitem__(self, rows: list[int]) -> Companions:
        return Companions(
            [
                (reference, {name: value[rows] for name, value in own.items()})
                for reference, own in self._heard
            ]
        )

    def begin(self, inputs: Mapping[str, Any], limit: int) -> Beside:
        """What runs beside a decoding of `inputs`; a reference without a prompt reads theirs."""
        return _InLockstep(
            [
                _OwnSteps(reference, own if "tokens" in own else {**inputs, **own}, limit)
                for reference, own in self._heard
            ]
        )


class _OwnSteps:
    """One reference's own passes."""

    def __init__(self, reference: Reference, inputs: Mapping[str, Any], limit: int) -> None:
        self.lockstep, self._reference = reference.lockstep, reference
        self._prompt = inputs["tokens"].to(reference.model.device)
        self._steps = Steps(reference.model, inputs, limit)
        self.passage = Passage()

    def __call__(self, tokens: Tokens) -> None:
        if not self._steps.past.length:  # its prompt may hold other audio, or say something else
            tokens = torch.cat([self._prompt, tokens[:, self._prompt.shape[1] :]], dim=1)
        with self._reference.alone(self.passage):
            self._steps(tokens)

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        self._steps.reorder(rows)
        self.passage.reorder(rows)


class _InLockstep(Beside):
    """All references of one decoding."""

    def __init__(self, references: list[_OwnSteps]) -> None:
        self._references = references

    @contextmanager
    def step(self, tokens: Tokens) -> Iterator[None]:
        with ExitStack() as read:
            for reference in self._references:
                reference(tokens)
                read.enter_context(reference.lockstep.at(reference.passage))
            yield

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        for reference in self._references:
            reference.reorder(rows)
