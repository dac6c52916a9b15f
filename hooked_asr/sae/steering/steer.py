"""What becomes of transcripts when features of a sparse autoencoder are changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_asr.concepts import Dose, concept_effect
from hooked_asr.interventions import Intervention
from hooked_asr.manifests import Clips
from hooked_asr.processes import Process
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.edits import (
    Positions,
    Seconds,
    ablate_features,
    add_features,
    clamp_features,
    scale_features,
)
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.steering.result import SteerSweep

HOWS = ("clamp", "add", "scale", "ablate")

FeatureSet = Sequence[int] | Mapping[int, float]
Features = FeatureSet | Mapping[str, FeatureSet]


def steer_sweep(
    sae: SparseAutoencoder,
    model: Any,
    clips: Clips,
    features: Features,
    strengths: Sequence[float] | None = None,
    how: str = "clamp",
    *,
    together: bool = False,
    positions: Positions = None,
    seconds: Seconds = None,
    units: Float[Tensor, " feature"] | None = None,
    language: str | None = None,
    texts: Sequence[str | None] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> SteerSweep:
    """Decode recordings with features driven or taken out, at several strengths, and compare.

        sweep = steer_sweep(sae, model, "english.csv", [857], [0, 10, 20])
        sweep.to_pandas(language="de"), sweep.plot(language="de")

    - `features`: each by itself, or `together` as one set; or with a value for each, which
      strengths multiply; or several sets by name, each as one:
      `{"German": german.values, "a woman's voice": female.values}`.
    - `how`: "clamp" to strength times its value (1 if not said) wherever the site is edited; "add"
      so much; "scale" by the strength; or "ablate", take it out, which has no strengths.
    - `strengths`: 0, 1, 2, 4 and 8 if not said. Values are in the features' own units, as
      `sae.encode` gives them; or in `units` of each feature, such as the greatest that it was
      (`FeaturePick.greatest`).
    - `positions`, `seconds`: where the site is edited, everywhere if not said. A Whisper tells the
      language behind position 0 of its decoder.
    - All else is as in `concepts.concept_effect`: with `language` open, it is told anew under each
      edit; results are kept in `out` as they come, and a run goes on where it was.

    A Whisper decodes all edits on one clip as a batch, `batch_size` at a time.

    Raises `SAEError` for features, strengths or an autoencoder that do not fit; `ConceptError`,
    `ManifestError` and `RecordsError` as `concept_effect`.
    """
    sae.spec(model)
    doses = feature_doses(sae, features, strengths, how, together, positions, seconds, units)
    effect = concept_effect(
        model,
        clips,
        doses,
        texts=texts,
        language=language,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        out=out,
        skip_errors=skip_errors,
        process=process,
        progress=progress,
        **prompt,
    )
    sets = _sets(features, together)
    driven = list(dict.fromkeys(one for own in sets.values() for one in own))
    return SteerSweep(effect, how, sae.site, driven, together or _are_named(features))


def feature_doses(
    sae: SparseAutoencoder,
    features: Features,
    strengths: Sequence[float] | None = None,
    how: str = "clamp",
    together: bool = False,
    positions: Positions = None,
    seconds: Seconds = None,
    units: Float[Tensor, " feature"] | None = None,
) -> list[Dose]:
    """The edits of `steer_sweep`, for `concept_effect`: of each feature or of all, each strength.

    Raises `SAEError` for what does not fit together.
    """
    sets = _sets(features, together)
    _check(sets, strengths, how, units)
    if units is not None:
        sets = {
            name: {one: value * float(units[one]) for one, value in own.items()}
            for name, own in sets.items()
        }
    where: dict[str, Any] = {"positions": positions, "seconds": seconds}
    if how == "ablate":
        return [
            Dose(name, (ablate_features(sae, list(own), **where),)) for name, own in sets.items()
        ]
    chosen = (0.0, 1.0, 2.0, 4.0, 8.0) if strengths is None else [float(one) for one in strengths]
    return [
        Dose(name, (_edit(sae, own, strength, how, where),), strength)
        for name, own in sets.items()
        for strength in chosen
    ]


def set_name(features: Sequence[int] | Mapping[int, float], most: int = 6) -> str:
    """Features in words.

    >>> set_name([12]), set_name([12, 40]), set_name(range(20))
    ('feature 12', 'features 12, 40', '20 features: 0, 1, 2, 3, 4, 5, …')
    """
    numbers = [str(one) for one in features]
    if len(numbers) > most:
        return f"{len(numbers)} features: {', '.join(numbers[:most])}, …"
    return ("feature " if len(numbers) == 1 else "features ") + ", ".join(numbers)


def _sets(features: Features, together: bool) -> dict[str, dict[int, float]]:
    """Names, and what each feature that goes with it is to be, or take."""
    if isinstance(features, Mapping) and _are_named(features):
        return {str(name): _values(own) for name, own in features.items()}
    values = _values(features)
    if together:
        return {set_name(values): values}
    return {set_name([one]): {one: value} for one, value in values.items()}


def _are_named(features: Features) -> bool:
    return isinstance(features, Mapping) and any(isinstance(name, str) for name in features)


def _values(features: Any) -> dict[int, float]:
    if isinstance(features, Mapping):
        return {int(one): float(value) for one, value in features.items()}
    return {int(one): 1.0 for one in features}


def _edit(
    sae: SparseAutoencoder,
    values: Mapping[int, float],
    strength: float,
    how: str,
    where: Mapping[str, Any],
) -> Intervention:
    if how == "scale":
        return scale_features(sae, list(values), strength, **where)
    if how == "add":
        return add_features(sae, values, strength, **where)
    return clamp_features(sae, {one: strength * value for one, value in values.items()}, **where)


def _check(
    sets: Mapping[str, Mapping[int, float]],
    strengths: Sequence[float] | None,
    how: str,
    units: Tensor | None,
) -> None:
    if how not in HOWS:
        raise SAEError(f"features are steered by {', '.join(HOWS)}; got how={how!r}")
    if not sets or not all(sets.values()):
        raise SAEError("there are no features to steer: give at least one")
    values = [(one, value) for own in sets.values() for one, value in own.items()]
    if how == "ablate" and strengths is not None:
        raise SAEError("what is ablated is gone, at no strength: leave strengths out")
    if strengths is not None and not len(strengths):
        raise SAEError("there are no strengths: give at least one")
    plain = units is None and all(value == 1.0 for _, value in values)
    if how in ("scale", "ablate") and not plain:
        raise SAEError(f"how={how!r} takes features alone: leave out their values and units")
    greatest = max(one for one, _ in values)
    if units is not None and greatest >= len(units):
        raise SAEError(f"there are units of {len(units)} features; asked for {greatest}")
