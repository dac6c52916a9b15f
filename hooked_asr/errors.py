"""What all of this library's own errors have in common."""


class HookedASRError(ValueError):
    """Something was asked for that cannot be done: what it was, what there is, what to do."""
