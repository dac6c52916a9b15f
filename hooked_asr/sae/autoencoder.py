"""A sparse autoencoder of one site's activations."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.files import folder_written_aside
from hooked_asr.names import HookSpec, resolve
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.saelens import saelens
from hooked_asr.weights.fingerprint import fingerprint

# In the metadata of SAELens's own configuration, beside its `model_name` and `hook_name`.
_WEIGHTS = "hooked_asr_weights"


class SparseAutoencoder:
    """A dictionary of directions, few of which are active in any one activation of its site.

        sae = SparseAutoencoder.load("sae", model)
        _, cache = model.run_with_cache(mel, tokens, names_filter=sae.site)
        features = sae.encode(cache[sae.site])                  # [batch pos feature]

    - `sae`: of SAELens, of any of its architectures; its files are SAELens's, and load there.
    - `site`: the hook that it reads. Of heads it takes all, side by side.
    - `model`: the name of the model that it was trained on; `weights`: the `fingerprint` of its
      weights, "" where it was trained elsewhere and nothing is known.

    Raises `SAEError` for one that does not say what hook it reads, unless `site` does.
    """

    def __init__(self, sae: Any, site: str | None = None) -> None:
        about = sae.cfg.metadata
        named = site or about.get("hook_name")
        if not named:
            raise SAEError("it does not say what it reads: give site='encoder.2.hook_resid_post'")
        self.sae = sae.eval().requires_grad_(False)
        self.sae.turn_off_forward_pass_hook_z_reshaping()  # heads are laid side by side here
        self.site: str = named
        self.model = str(about.get("model_name") or "")
        self.weights = str(about.get(_WEIGHTS) or "")

    def __repr__(self) -> str:
        kind = self.sae.cfg.architecture()
        return f"<{kind} of {self.n_features} features at {self.site} ({self.d_in} dimensions)>"

    @property
    def d_in(self) -> int:
        """The width of the site."""
        return int(self.sae.cfg.d_in)

    @property
    def n_features(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def directions(self) -> Float[Tensor, "feature d"]:
        """What each feature adds to the activation where it is active at 1."""
        made: Tensor = self.sae.W_dec
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            return made / made.norm(dim=-1, keepdim=True)
        return made

    @property
    def identity(self) -> str:
        """A hash of its architecture and weights, which records of what it was used for keep."""
        about = {**self.sae.cfg.to_dict(), "metadata": None, "device": None}
        own = SimpleNamespace(config=about, named_parameters=self.sae.named_parameters)
        return fingerprint(own)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch feature"]:
        """How active each feature is; of heads `[… head d_head]` the features of all together."""
        made: Tensor = self.sae.encode(self._flat(x).to(self.sae.W_dec))
        return made

    @torch.no_grad()
    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d"]:
        """The activation that these features make up, right behind an `encode` of the same rows."""
        made: Tensor = self.sae.decode(features)
        return made

    def reconstruct(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """An activation as its features tell it, in its own shape and float type."""
        return self.decode(self.encode(x)).reshape(x.shape).to(x.dtype)

    def to(self, where: Any) -> SparseAutoencoder:
        """Itself, moved to a device."""
        self.sae.to(where)
        return self

    # --- The model that it belongs to -----------------------------------------------------------

    def spec(self, model: Any) -> HookSpec:
        """The model's hook that it reads.

        Raises `SAEError` for a model with other weights than it was trained on, or a site of
        another width; `UnknownHookError` where the model has no such hook.
        """
        spec: HookSpec = model.hook_table[resolve(self.site, list(model.hook_table))]
        if self.weights and fingerprint(model) != self.weights:
            raise SAEError(
                f"the autoencoder of {self.site} was trained on {self.model!r}, and {model.name!r} "
                "has other weights: train one on this model's activations"
            )
        width = spec.shape(model.config, 1, 1)[2:]
        if torch.Size(width).numel() != self.d_in:
            raise SAEError(
                f"the autoencoder reads {self.d_in} dimensions, and {spec.name} of {model.name} "
                f"has {list(width)}"
            )
        return spec

    # --- Files ------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it as SAELens does: cfg.json and sae_weights.safetensors in a folder."""
        about = self.sae.cfg.metadata
        about["hook_name"], about["model_name"], about[_WEIGHTS] = (
            self.site,
            self.model,
            self.weights,
        )
        with folder_written_aside(folder) as aside:
            self.sae.save_model(aside)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: Any = None,
        *,
        site: str | None = None,
        device: str | None = None,
    ) -> SparseAutoencoder:
        """What `save`, or SAELens, wrote; for the model that it belongs to, where one is given.

        - `site`: the hook that it reads, where the file says another name or none.
        - `device`: by default the model's.

        Raises `SAEError` for a folder that holds none; and as `spec`.
        """
        if not (Path(folder) / "cfg.json").is_file():
            raise SAEError(f"there is no sparse autoencoder in {os.fspath(folder)!r}: no cfg.json")
        where = device or ("cpu" if model is None else str(model.device))
        try:
            sae = saelens().SAE.load_from_disk(folder, device=where)
        except (OSError, ValueError, KeyError, RuntimeError) as cause:
            raise SAEError(
                f"the sparse autoencoder in {os.fspath(folder)!r} cannot be read: {cause}"
            ) from cause
        found = cls(sae, site)
        if model is not None:
            found.spec(model)
        return found

    # --- Parts ------------------------------------------------------------------------------------

    def _flat(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] == self.d_in else x.flatten(-2)
