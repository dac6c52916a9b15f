"""Sparse autoencoders on speech: train them, read their features, listen to them, steer by them."""

from hooked_asr.sae.attribution.attribute import attribute_features
from hooked_asr.sae.attribution.result import FeatureAttribution
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.edits import (
    ablate_features,
    add_features,
    clamp_features,
    scale_features,
    splice,
)
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.measuring.frontier import frontier
from hooked_asr.sae.measuring.measure import measure_sae
from hooked_asr.sae.measuring.result import SAEMeasures
from hooked_asr.sae.pages.pages import feature_pages
from hooked_asr.sae.reading.read import read_features
from hooked_asr.sae.reading.reading import FeatureReading
from hooked_asr.sae.steering.pick import pick_features
from hooked_asr.sae.steering.steer import steer_sweep
from hooked_asr.sae.training.train import train_sae

__all__ = [
    "FeatureAttribution",
    "FeatureReading",
    "SAEError",
    "SAEMeasures",
    "SparseAutoencoder",
    "ablate_features",
    "add_features",
    "attribute_features",
    "clamp_features",
    "feature_pages",
    "frontier",
    "measure_sae",
    "pick_features",
    "read_features",
    "scale_features",
    "splice",
    "steer_sweep",
    "train_sae",
]
