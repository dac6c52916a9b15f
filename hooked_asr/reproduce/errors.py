"""What is wrong with what was asked of a tutorial, or with results."""

from hooked_asr.errors import HookedASRError


class TutorialError(HookedASRError):
    """A tutorial that is not there, or cannot be run as asked."""


class ResultsError(HookedASRError):
    """Results that cannot be kept or read."""
