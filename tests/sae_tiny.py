"""Sparse autoencoders with drawn weights, for tests."""

from typing import Any

import torch

from hooked_asr.sae import SparseAutoencoder
from hooked_asr.sae.saelens import saelens
from hooked_asr.weights.fingerprint import fingerprint


def made(
    model: Any, site: str, n_features: int = 24, seed: int = 0, **options: Any
) -> SparseAutoencoder:
    """A standard one (ReLU) of a model's site; about half of its features are active."""
    _, _, *width = model.hook_table[site].shape(model.config, 1, 1)
    lens = saelens()
    config = lens.StandardSAEConfig(d_in=torch.Size(width).numel(), d_sae=n_features, **options)
    config.metadata["model_name"] = model.name
    config.metadata["hooked_asr_weights"] = fingerprint(model)
    generator = torch.Generator().manual_seed(seed)
    sae = lens.StandardSAE(config)
    with torch.no_grad():
        for weight in sae.parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn / weight.shape[-1] ** 0.5)
    return SparseAutoencoder(sae, site)
