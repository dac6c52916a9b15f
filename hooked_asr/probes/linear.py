"""A fitted probe: one linear map of an activation, with what it tells and of which model."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_asr.patching.saving import plain
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.origin import NOBODYS, ProbeOrigin
from hooked_asr.probes.question import Label
from hooked_asr.probes.scores import Score
from hooked_asr.weights.fingerprint import fingerprint
from hooked_asr.weights.tensor_file import read_tensors, write_tensors

_KIND = "probe"


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What a line through one site's activations tells: a class, or a number.

    - `weights`, `bias`: of activations as they are; mean and scale of the rows that the probe was
      fitted to are folded in. One output for two classes (the logit of the second) or a number,
      otherwise one for each class.
    - `classes`: those that are told, sorted; None for numbers.
    - `name`: what is told; `site`: of which activations.
    - `origin`: the model they come from, and how they were pooled.
    - `penalty`: C of a logistic regression, alpha of a ridge regression.
    - `scores`: held-out ones, of probes fitted alike.

    >>> probe = LinearProbe(torch.tensor([[3.0, 4.0]]), torch.zeros(1), ["no", "yes"])
    >>> probe.predict(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist(), probe.direction.tolist()
    (['yes', 'no'], [0.6000000238418579, 0.800000011920929])
    """

    weights: Float[Tensor, "out d"]
    bias: Float[Tensor, " out"]
    classes: list[Label] | None
    name: str = "label"
    site: str = ""
    origin: ProbeOrigin = NOBODYS
    penalty: float = float("nan")
    scores: dict[str, Score] = field(default_factory=dict)

    # --- Telling ----------------------------------------------------------------------------------

    def decision(self, activations: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        """Weights times activations plus bias, in float32 at least, where the activations are.

        `to` a device before many calls saves moving the weights in each.

        Raises `ProbeError` for activations of another width.
        """
        if activations.shape[-1] != self.weights.shape[1]:
            raise ProbeError(
                f"the probe of {self.name} reads activations {self.weights.shape[1]} wide"
                f"{f', of {self.site}' if self.site else ''}; got {list(activations.shape)}"
            )
        there = activations.to(torch.promote_types(activations.dtype, self.weights.dtype))
        weights, bias = (one.to(there.device, there.dtype) for one in (self.weights, self.bias))
        return there @ weights.T + bias

    def predict_proba(self, activations: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows class"]:
        """The probability of each class.

        Raises `ProbeError` for a probe that tells numbers, and as `decision`.
        """
        if self.classes is None:
            raise ProbeError(f"the probe of {self.name} tells numbers, which have no probability")
        found = self.decision(activations)
        if found.shape[-1] > 1:
            return found.softmax(-1)
        return torch.cat([(-found).sigmoid(), found.sigmoid()], -1)

    def predict_index(self, activations: Float[Tensor, "*rows d"]) -> Int[Tensor, "*rows"]:
        """The place of each row's likeliest class among `classes`; it stays on the device.

        Raises `ProbeError` as `predict_proba`.
        """
        return self.predict_proba(activations).argmax(-1)

    def predict(self, activations: Float[Tensor, "*rows d"]) -> np.ndarray:
        """The likeliest class of each row, or its number: `[*rows]`.

        Raises `ProbeError` as `decision`.
        """
        if self.classes is None:
            return self.decision(activations)[..., 0].detach().cpu().numpy()
        return np.array(self.classes)[self.predict_index(activations).cpu().numpy()]

    @property
    def direction(self) -> Float[Tensor, "*class d"]:
        """The way in which activations have to move, as a unit vector `[d]`: to the second class,
        or to larger numbers. With more than two classes `[class d]`, one to each.
        """
        found = self.weights / self.weights.norm(dim=-1, keepdim=True)
        return found[0] if len(found) == 1 else found

    # --- Where it belongs -------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> LinearProbe:
        """The same probe, its weights on a device."""
        return replace(self, weights=self.weights.to(device), bias=self.bias.to(device))

    def check(self, model: Any) -> None:
        """Raises `ProbeError` for a model with other weights than the one that was probed.

        A probe of no model's in particular fits any.
        """
        if self.origin.weights and fingerprint(model) != self.origin.weights:
            raise ProbeError(
                f"the probe of {self.name} was fitted to {self.origin.model or 'another model'}, "
                f"and {model.name} has other weights: fit it to this model's activations"
            )

    # --- Files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe as one .safetensors file, what it tells in its metadata.

        Raises `ProbeError` for another suffix.
        """
        said = {name: getattr(self, name) for name in ("classes", "name", "site", "penalty")}
        said["origin"] = asdict(self.origin)
        said["scores"] = {name: asdict(score) for name, score in self.scores.items()}
        tensors = {name: getattr(self, name) for name in ("weights", "bias")}
        write_tensors(path, _KIND, tensors, plain(said), ProbeError)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> LinearProbe:
        """Read what `save` wrote.

        Raises `ProbeError` for a file that is missing, damaged, or something else.
        """
        tensors, said = read_tensors(path, _KIND, ProbeError)
        said["origin"] = ProbeOrigin(**said["origin"])
        said["scores"] = {name: as_score(one) for name, one in said["scores"].items()}
        said["penalty"] = float("nan") if said["penalty"] is None else said["penalty"]
        return cls(tensors["weights"], tensors["bias"], **said).to(device)


def as_score(said: dict[str, float | None]) -> Score:
    """A score as it was written; null was NaN."""
    return Score(**{name: float("nan") if one is None else one for name, one in said.items()})
