"""What a monitor cannot do."""

from hooked_asr.errors import HookedASRError


class MonitorError(HookedASRError):
    """A probe that cannot be read while a model decodes, and why."""
