"""Where the features of a probe come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hooked_asr.weights.fingerprint import fingerprint


@dataclass(frozen=True)
class ProbeOrigin:
    """The model whose activations are probed, and how they became one row.

    - `model`: its name; `weights`: its `fingerprint`, "" for no model's in particular.
    - `pool`: "mean" over the real positions, "last", "frames", …
    """

    model: str = ""
    weights: str = ""
    pool: str = ""

    @classmethod
    def of(cls, model: Any, pool: str = "") -> ProbeOrigin:
        """A model's, as it is now."""
        return cls(model.name, fingerprint(model), pool)


NOBODYS = ProbeOrigin()
