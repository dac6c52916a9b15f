"""What goes wrong with concepts."""

from __future__ import annotations

from hooked_asr.errors import HookedASRError


class ConceptError(HookedASRError):
    """A concept that cannot be found, kept, or used as asked."""
