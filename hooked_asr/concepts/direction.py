"""A concept as a direction in a model's activations: read along it, and steer by it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, SupportsFloat, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from hooked_asr.concepts.class_means import ClassMeans, check_widths, means_along
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.concepts.features import (
    as_doubles,
    as_features,
    as_site,
    check_weights,
    placed,
    weights_of,
)
from hooked_asr.interventions import Intervention, Site, add, clamp
from hooked_asr.weights.tensor_file import read_tensors, write_tensors

_KIND = "concept direction"
Positions = SupportsIndex | Iterable[SupportsIndex] | slice | None
Seconds = Iterable[SupportsFloat] | None


class ConceptDirection:
    """A direction `[d]` in the activations of a site, towards what has a concept.

        direction = mean_difference(german, english, site="encoder.2.resid_post", model=model)
        model.transcribe("clip.flac", interventions=[direction.steer(1.0)])

    - `vector`: as long as it comes; steering and reading go by its unit vector.
    - `site`: where it lies; of several heads, it is each one's. Interventions act there unless
      moved (`intervention.at`).
    - `means`: where the classes lie along it; `on` measures them. The concept's own scale runs from
      0, the mean of the negative class, to 1, that of the positive one.
    - `name`, and of the model that it was found in: `model`, its name, and `weights`, their
      fingerprint.

    Raises `ConceptError` for a vector that is none, or has no length.
    """

    def __init__(
        self,
        vector: Any,
        site: Site | str,
        *,
        means: ClassMeans | None = None,
        name: str = "concept",
        model: str = "",
        weights: str = "",
    ) -> None:
        self.vector: Float[Tensor, " d"] = _as_vector(vector)
        self.site = as_site(site)
        self.means, self.name = means, name
        self.model, self.weights = model, weights

    @classmethod
    def of(
        cls,
        probe: Any,
        towards: Any = None,
        *,
        site: Site | str | None = None,
        name: str | None = None,
    ) -> ConceptDirection:
        """The direction of a probe: of anything that has `direction` (its normal) and `site`.

        - `towards`: one of `probe.classes`, where there is a direction to each of them.
        - `site`, `name`: by default the probe's own, as are model and weights of its `origin`.

        It knows nothing of the classes' means: measure them, as in `.on(positive, negative)`.

        Raises `ConceptError` for several directions and no class, or a probe without a site.
        """
        site = site or getattr(probe, "site", None)
        if not site:
            raise ConceptError("the probe does not say where it reads: give site='encoder.2.mlp'")
        name = name or getattr(probe, "name", None) or "concept"
        found = getattr(probe, "origin", None)
        model, weights = (getattr(found, key, "") for key in ("model", "weights"))
        return cls(_normal_of(probe, towards), site, name=name, model=model, weights=weights)

    def __repr__(self) -> str:
        return f"<{self.name} at {self.site}: {len(self.vector)} dimensions>"

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The direction at length 1."""
        made: Tensor = self.vector / self.vector.norm()
        return made

    @property
    def distance(self) -> float:
        """How far the class means lie apart along it.

        Raises `ConceptError` where they were never measured.
        """
        return self._known_means.distance

    def on(self, positive: Any, negative: Any) -> ConceptDirection:
        """The same vector, with the class means of these features `[sample d]`.

        Raises `ConceptError` for features of another width, or classes that do not lie apart.
        """
        return self._copy(means=means_along(self.vector, positive, negative))

    # --- Reading ----------------------------------------------------------------------------------

    def project(
        self, x: Float[Tensor, "*batch d"], own_scale: bool = False
    ) -> Float[Tensor, "*batch"]:
        """Coordinates along the unit vector, in the activations' units.

        `own_scale`: on the concept's scale instead, 0 and 1 at the class means.
        """
        along = x @ self.unit.to(x)
        if not own_scale:
            return along
        return (along - self._known_means.negative) / self.distance

    # --- Acting -----------------------------------------------------------------------------------

    def steer(
        self, strength: float, positions: Positions = None, seconds: Seconds = None
    ) -> Intervention:
        """Add the direction: `strength` times the distance of the class means.

        At 1.0 the mean of the negative class comes to where that of the positive one is; at -1.0
        the other way; at 0.0 nothing is changed, to the last bit. `positions`, `seconds`: as `Site`
        takes them; everywhere, if not said.

        Raises `ConceptError` where the class means are not known.
        """
        step = self.unit * self.distance
        return add(placed(self.site, positions, seconds), step, float(strength))

    def clamp(
        self, value: float, positions: Positions = None, seconds: Seconds = None
    ) -> Intervention:
        """Set the coordinate to a value on the concept's own scale, whatever it was.

        0.0 is the mean of the negative class, 1.0 that of the positive one.

        Raises `ConceptError` where the class means are not known.
        """
        along = self._known_means.negative + value * self.distance
        return clamp(placed(self.site, positions, seconds), self.vector, along)

    def ablate(self, positions: Positions = None, seconds: Seconds = None) -> Intervention:
        """Project the direction out: the coordinate along it becomes 0.

        Source: "Refusal in Language Models Is Mediated by a Single Direction" (2024), section 2.4.
        """
        return clamp(placed(self.site, positions, seconds), self.vector)

    # --- Files ------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Raises `ConceptError` where a model has other weights than it was found with."""
        check_weights(self.name, self.model, self.weights, model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as .safetensors.

        Raises `ConceptError` for another suffix.
        """
        said = {
            "site": str(self.site),
            "means": None if self.means is None else asdict(self.means),
            "name": self.name,
            "model": self.model,
            "weights": self.weights,
        }
        write_tensors(path, _KIND, {"vector": self.vector}, said, ConceptError)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptDirection:
        """What `save` wrote.

        Raises `ConceptError` for a file that holds something else.
        """
        tensors, said = read_tensors(path, _KIND, ConceptError)
        means = said.pop("means")
        return cls(tensors["vector"], means=None if means is None else ClassMeans(**means), **said)

    # --- Parts ------------------------------------------------------------------------------------

    @property
    def _known_means(self) -> ClassMeans:
        if self.means is None:
            raise ConceptError(
                f"{self.name!r} has no class means to take a strength or a value from: give "
                "features of both classes, as in direction.on(positive, negative); or say the "
                "length yourself, as in interventions.add(site, direction.unit, 3.0)"
            )
        return self.means

    def _copy(self, **changes: Any) -> ConceptDirection:
        fields = {"means": self.means, "name": self.name, "model": self.model}
        made = {**fields, "weights": self.weights, **changes}
        return ConceptDirection(self.vector, self.site, **made)


def mean_difference(
    positive: Any,
    negative: Any,
    site: Site | str,
    *,
    unit: bool = False,
    name: str = "concept",
    model: Any = None,
) -> ConceptDirection:
    """The direction from the mean of one class's features to that of the other's.

    >>> direction = mean_difference([[3.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], "encoder.0.resid_post")
    >>> direction.vector.tolist(), direction.distance
    ([2.0, 0.0], 2.0)

    - `positive`, `negative`: features `[sample d]` of the site, arrays or tensors.
    - `unit`: keep it at length 1 and not at that of the difference. Steering is the same.
    - `model`: the model they were read in, to keep its name and its weights' fingerprint.

    Raises `ConceptError` for features of different widths, of no sample, or not finite; or where
    the means are the same.

    Source: "The Geometry of Truth" (2023), section 5.1, "mass-mean" directions; as steering
    vectors, "Steering Llama 2 via Contrastive Activation Addition" (2023), section 3.
    """
    first, second = as_features(positive, "positive"), as_features(negative, "negative")
    check_widths(first.shape[1], positive=first, negative=second)
    difference = first.mean(0) - second.mean(0)
    if not float(difference.norm()):
        raise ConceptError("both classes have the same mean: there is no direction between them")
    vector = difference / difference.norm() if unit else difference
    means = means_along(vector, first, second)
    about, weights = weights_of(model)
    return ConceptDirection(vector, site, means=means, name=name, model=about, weights=weights)


def cosine(a: ConceptDirection, b: ConceptDirection) -> float:
    """The cosine of the angle between two directions.

    Raises `ConceptError` where they have different numbers of dimensions.
    """
    check_widths(len(a.vector), **{b.name: b.vector[None]})
    return float(a.unit.double() @ b.unit.double())


def _as_vector(vector: Any) -> Float[Tensor, " d"]:
    rows = as_features(_as_row(vector), "a direction's numbers")
    if not float(rows[0].norm()):
        raise ConceptError("a direction has a length; got zeros")
    return rows[0].float()


def _normal_of(probe: Any, towards: Any) -> Tensor:
    normal = as_doubles(probe.direction)
    if normal.ndim == 1:
        return normal
    classes = list(getattr(probe, "classes", None) or [])
    if towards not in classes:
        raise ConceptError(
            f"the probe has a direction to each of its classes, {classes}: say towards which; got "
            f"{towards!r}"
        )
    found: Tensor = normal[classes.index(towards)]
    return found


def _as_row(vector: Any) -> Tensor:
    made = as_doubles(vector)
    if made.ndim != 1:
        raise ConceptError(f"a direction is one vector [d]; got {list(made.shape)}")
    return made[None]
