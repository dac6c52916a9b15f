"""What a probe cannot be fitted to, or read from."""

from hooked_asr.errors import HookedASRError


class ProbeError(HookedASRError):
    """A probe that cannot be fitted, read or applied as asked."""
