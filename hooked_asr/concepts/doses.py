"""What is done to a model, what that is called, and how strong it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.concepts.direction import ConceptDirection, Positions, Seconds
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.interventions import Intervention

Directions = ConceptDirection | Sequence[ConceptDirection] | Mapping[str, ConceptDirection]
Doses = Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, eq=False)
class Dose:
    """Interventions that act together: their name, and a strength where there is one."""

    name: str
    interventions: tuple[Intervention, ...]
    strength: float | None = None

    @property
    def label(self) -> str:
        """Name and strength."""
        return self.name if self.strength is None else f"{self.name} × {self.strength:g}"


def steering(
    directions: Directions,
    strengths: Sequence[float],
    positions: Positions = None,
    seconds: Seconds = None,
) -> list[Dose]:
    """Each direction at each strength, for `concept_effect`.

    `directions`: one or several, called by their sites; or by the names of a mapping.
    """
    if isinstance(directions, ConceptDirection):
        directions = [directions]
    if not isinstance(directions, Mapping):
        directions = {str(one.site): one for one in directions}
    return [
        Dose(name, (direction.steer(strength, positions, seconds),), float(strength))
        for name, direction in directions.items()
        for strength in strengths
    ]


def as_doses(interventions: Doses) -> list[Dose]:
    """Doses out of what a caller may give: interventions, lists of them that act together, doses.

    Raises `ConceptError` for what is none of these, for none at all, or for two of one name and
    strength.
    """
    if isinstance(interventions, Mapping):
        doses = [_dose(one, str(name)) for name, one in interventions.items()]
    else:
        doses = [_dose(one) for one in interventions]
    if not doses:
        raise ConceptError("there are no interventions: give at least one")
    labels = [one.label for one in doses]
    twice = next((one for i, one in enumerate(labels) if one in labels[:i]), None)
    if twice is not None:
        raise ConceptError(
            f"{twice!r} is there twice: name them apart, as in {{'first': …, 'second': …}}"
        )
    return doses


def _dose(given: Any, name: str | None = None) -> Dose:
    if isinstance(given, Dose):
        return given if name is None else Dose(name, given.interventions, given.strength)
    together = (given,) if isinstance(given, Intervention) else given
    if not isinstance(together, list | tuple) or not together:
        raise ConceptError(f"interventions, or lists of them, are what acts; got {given!r}")
    odd = [one for one in together if not isinstance(one, Intervention)]
    if odd:
        raise ConceptError(
            f"interventions are what acts; got {odd[0]!r}. A hook function becomes one by "
            "interventions.custom(site, fn)"
        )
    return Dose(name or " + ".join(map(str, together)), tuple(together))
