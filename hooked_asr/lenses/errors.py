"""What a lens cannot read."""

from hooked_asr.errors import HookedASRError


class LensError(HookedASRError):
    """A lens that cannot be applied as asked."""
