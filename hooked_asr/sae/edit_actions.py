"""What happens at a site that a sparse autoencoder reads: rebuilt, or some features changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.interventions import Action, InterventionError
from hooked_asr.interventions.region import Region
from hooked_asr.interventions.site import Activation
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError

# Their features depend on the position alone, and each adds a direction of its own.
_LINEAR = ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit")

_names: WeakKeyDictionary[SparseAutoencoder, str] = WeakKeyDictionary()


class Dictionary(str):
    """An autoencoder, which as text is a hash of its weights: so `interventions.to_json` keeps it.

    Raises `SAEError` for an architecture whose features are not its directions' coefficients.
    """

    sae: SparseAutoencoder

    def __new__(cls, sae: SparseAutoencoder) -> Dictionary:
        kind = sae.sae.cfg.architecture()
        if kind not in _LINEAR:
            raise SAEError(
                f"an autoencoder of architecture {kind!r} does not decode position by position, "
                f"direction by direction: edits take {', '.join(_LINEAR)}"
            )
        if sae not in _names:
            _names[sae] = sae.identity
        made = super().__new__(cls, _names[sae])
        made.sae = sae
        return made

    def flat(self, x: Activation, hook: Any) -> Float[Tensor, "*batch d"]:
        """An activation's vectors, where and as what the autoencoder's weights are."""
        d_in = self.sae.d_in
        vectors = x if x.shape[-1] == d_in or hook.spec.head_axis is None else x.flatten(-2)
        if vectors.shape[-1] != d_in:
            raise InterventionError(
                f"an autoencoder of {d_in} dimensions does not fit {list(x.shape)} at {hook.name} "
                f"({' '.join(hook.spec.axes)}): it takes all of them, of all heads"
            )
        return vectors.to(self.sae.sae.W_dec)

    def written(self, features: tuple[int, ...]) -> Float[Tensor, "k d"]:
        """What the autoencoder adds where each of these features is active at 1."""
        return self.sae.directions[list(features)]


@dataclass(frozen=True, eq=False)
class Splice(Action):
    """The reconstruction; with `keep_error`, what it leaves out as well, and so no change."""

    kind = "splice"
    dictionary: Dictionary
    keep_error: bool = False

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        if self.keep_error:
            return None
        here = x[region.local]
        sae = self.dictionary.sae.sae
        rebuilt: Tensor = sae.decode(sae.encode(self.dictionary.flat(here, hook)))
        return rebuilt.reshape(here.shape).to(here)


@dataclass(frozen=True, eq=False)
class FeatureEdit(Action):
    """Some features changed: the activation moves by what their change decodes to.

    What the autoencoder does not explain stays as it is, and so does, to the last bit, every
    position where no feature changes.
    """

    dictionary: Dictionary
    features: tuple[int, ...]

    def change(self, flat: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """By how much each of the features changes; the autoencoder has seen `flat` since."""
        raise TypeError(f"{type(self).__name__} says nothing of what becomes of features")

    @property
    def idle(self) -> bool:
        """Whether nothing changes anywhere."""
        return not self.features

    def active(self, flat: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """How active the features are."""
        made: Tensor = self.dictionary.sae.sae.encode(flat)[..., list(self.features)]
        return made

    def value(self, x: Activation, hook: Any, region: Region) -> Activation | None:
        if self.idle:
            return None
        here = x[region.local]
        flat = self.dictionary.flat(here, hook)
        change = self.change(flat)
        moved = change @ self.dictionary.written(self.features) * _unit(self.dictionary.sae.sae)
        wide = here.to(torch.promote_types(here.dtype, moved.dtype))
        edited = (wide + moved.to(wide).reshape(here.shape)).to(here.dtype)
        stays = (change == 0).all(-1).to(here.device)
        return here.where(stays.reshape(*stays.shape, *[1] * (here.ndim - stays.ndim)), edited)


@dataclass(frozen=True, eq=False)
class AddFeatures(FeatureEdit):
    """So much more of each feature, whether it is active or not."""

    kind = "add_features"
    values: tuple[float, ...]

    @property
    def idle(self) -> bool:
        return not any(self.values)

    def change(self, flat: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        self.dictionary.sae.sae.run_time_activation_norm_fn_in(flat)  # notes the norm, if any
        return flat.new_tensor(self.values).expand(*flat.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class ScaleFeatures(FeatureEdit):
    """Each feature times a number: 0 ablates it."""

    kind = "scale_features"
    by: float

    @property
    def idle(self) -> bool:
        return self.by == 1.0 or not self.features

    def change(self, flat: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        return (self.by - 1.0) * self.active(flat)


@dataclass(frozen=True, eq=False)
class ClampFeatures(FeatureEdit):
    """Each feature moved towards a value: not at all at strength 0, to the value itself at 1."""

    kind = "clamp_features"
    values: tuple[float, ...]
    strength: float = 1.0

    @property
    def idle(self) -> bool:
        return self.strength == 0.0 or not self.features

    def change(self, flat: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        return self.strength * (flat.new_tensor(self.values) - self.active(flat))


def _unit(sae: Any) -> Any:
    """What a direction is long in the activation just seen, where it is normalised first."""
    if sae.cfg.normalize_activations == "layer_norm":
        return sae.ln_std
    if sae.cfg.normalize_activations == "constant_norm_rescale":
        return 1 / sae.x_norm_coeff
    return 1.0
