"""What a sparse autoencoder cannot do."""

from hooked_asr.errors import HookedASRError


class SAEError(HookedASRError):
    """A sparse autoencoder that cannot be trained, loaded or used as asked, and why."""
