"""Activations of a corpus on disk: rows for each clip, frame or token, larger than memory."""

from hooked_asr.features.errors import FeatureError
from hooked_asr.features.harvest import harvest
from hooked_asr.features.rows import Rows
from hooked_asr.features.store import FeatureStore

__all__ = ["FeatureError", "FeatureStore", "Rows", "harvest"]
