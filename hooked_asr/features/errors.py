"""What goes wrong with features."""

from hooked_asr.errors import HookedASRError


class FeatureError(HookedASRError):
    """Features that cannot be harvested or read, and why."""
