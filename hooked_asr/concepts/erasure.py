"""A concept erased from activations by an affine map."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.concepts.direction import Positions, Seconds
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.concepts.features import as_site, check_weights, placed
from hooked_asr.interventions import Clamp, Intervention, Site
from hooked_asr.weights.tensor_file import read_tensors, write_tensors

_KIND = "concept erasure"


class Erasure:
    """The map `x - left @ right @ (x - mean)`, behind which no linear probe finds the concept.

        erasure = fit_erasure(features, languages, site="encoder.2.resid_post", model=model)
        model.transcribe("clip.flac", interventions=[erasure.intervention()])

    - `left`: `[d rank]`; `right`: `[rank d]`; `mean`: `[d]`, of the features it was fitted on,
      which the map leaves where it is. It is computed in the precision of what it is applied to,
      float32 at least.
    - `site`: where it acts; of several heads, on each alike.
    - `counts`: samples of each class, where the concept is classes.
    - `name`, and of the model that it was found in: `model`, its name, and `weights`, their
      fingerprint.

    Raises `ConceptError` for tensors that do not fit each other.

    Source: "LEACE: Perfect linear concept erasure in closed form" (2023).
    """

    def __init__(
        self,
        left: Float[Tensor, "_ _"],
        right: Float[Tensor, "_ _"],
        mean: Float[Tensor, " _"],
        site: Site | str,
        *,
        counts: Mapping[str, int] | None = None,
        name: str = "concept",
        model: str = "",
        weights: str = "",
    ) -> None:
        if left.shape != right.T.shape or len(mean) != len(left):
            raise ConceptError(
                f"left [d rank], right [rank d] and mean [d] fit each other; got "
                f"{list(left.shape)}, {list(right.shape)} and {list(mean.shape)}"
            )
        self.left, self.right, self.mean = left, right, mean
        self.site, self.counts = as_site(site), dict(counts or {})
        self.name, self.model, self.weights = name, model, weights

    def __repr__(self) -> str:
        return f"<erasure of {self.name} at {self.site}: rank {self.rank} of {len(self.mean)}>"

    @property
    def rank(self) -> int:
        """How many dimensions are lost."""
        return len(self.right)

    def apply(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Activations without the concept."""
        return self._action.apply(x)

    def intervention(self, positions: Positions = None, seconds: Seconds = None) -> Intervention:
        """The map at its site: `positions`, `seconds` as `Site` takes them; else everywhere."""
        return Intervention(placed(self.site, positions, seconds), self._action)

    @property
    def _action(self) -> Clamp:
        """It sets the coordinates that `right` takes to those of the mean."""
        return Clamp(self.right.T, self.left.T, self.right @ self.mean)

    # --- Files ------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Raises `ConceptError` where a model has other weights than it was found with."""
        check_weights(f"erasure of {self.name}", self.model, self.weights, model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as .safetensors.

        Raises `ConceptError` for another suffix.
        """
        said = {
            "site": str(self.site),
            "counts": self.counts,
            "name": self.name,
            "model": self.model,
            "weights": self.weights,
        }
        tensors = {"left": self.left, "right": self.right, "mean": self.mean}
        write_tensors(path, _KIND, tensors, said, ConceptError)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Erasure:
        """What `save` wrote.

        Raises `ConceptError` for a file that holds something else.
        """
        tensors, said = read_tensors(path, _KIND, ConceptError)
        return cls(tensors["left"], tensors["right"], tensors["mean"], **said)
