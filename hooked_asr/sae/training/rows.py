"""What a sparse autoencoder is trained on: a feature store's rows, or a model's on clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooked_asr.features import FeatureStore
from hooked_asr.features.sites import width
from hooked_asr.manifests import clips_hash, read_clips
from hooked_asr.names import resolve
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.training.blocks import Harvesting, LiveBlocks, StoreBlocks
from hooked_asr.sae.training.stream import Blocks
from hooked_asr.weights.fingerprint import computed_with


@dataclass(frozen=True)
class Origin:
    """What is trained on.

    - `asked`: all that the rows depend on, as JSON holds it.
    - `model`, `weights`, `device`: the model that they are of.
    """

    blocks: Blocks
    site: str
    d_in: int
    asked: dict[str, Any]
    model: str
    weights: str
    device: str = "cpu"


def stored(store: FeatureStore, clips: Any, site: Any, harvest: Any) -> Origin:
    if clips is not None or harvest:
        given = ", ".join(["clips"] if clips is not None else list(harvest))
        raise SAEError(f"a store holds its rows already, and {given} would change nothing")
    if store.pool not in ("frames", "tokens"):
        raise SAEError(
            f"{store.folder} keeps a {store.pool!r} of each clip: harvest all its positions, with "
            "pool='frames' or 'tokens'"
        )
    if site is None and len(store.sites) > 1:
        raise SAEError(f"which site? {store.folder} holds {', '.join(store.sites)}")
    name = store.sites[0] if site is None else resolve(site, store.sites)
    asked = {**store.index["asked"], "site": name}
    asked = {f"store: {key}": value for key, value in asked.items()}
    model = str(store.index["model"])
    d_in = store[name].shape[1]
    return Origin(StoreBlocks(store, name), name, d_in, asked, model, store.fingerprint)


class Live:
    """A model's activations on clips."""

    def __init__(
        self, model: Any, clips: Any, site: Any, dtype: torch.dtype | None, options: dict[str, Any]
    ) -> None:
        if clips is None or site is None:
            missing = "clips" if clips is None else "site"
            raise SAEError(
                f"a model is trained on the activations of clips at a site: give {missing}"
            )
        self.model, self.clips = model, read_clips(clips)
        self.spec = model.hook_table[resolve(site, list(model.hook_table))]
        self.dtype, self.options = dtype, dict(options)
        if "clips_at_once" in self.options:
            self.options["batch_size"] = self.options.pop("clips_at_once")

    def origin(self, folder: Path, buffer: int, passes: int, seed: int, progress: bool) -> Origin:
        model, spec = self.model, self.spec
        harvesting = Harvesting(model, spec, self.dtype, self.options)
        blocks = LiveBlocks(harvesting, self.clips, folder, buffer, passes, seed, progress)
        computed = computed_with(model)
        asked = {
            **computed,
            "clips (hash)": clips_hash(self.clips),
            "site": spec.name,
            "rows": str(self.dtype or model.dtype).removeprefix("torch."),
            "harvest": self.options,
            **({} if blocks.fits else {"buffer": buffer, "passes": passes}),
        }
        d_in, weights = width(spec, model.config), computed["weights (hash)"]
        return Origin(blocks, spec.name, d_in, asked, model.name, weights, str(model.device))
