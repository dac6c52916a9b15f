"""What a tuned lens was trained for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LensOrigin:
    """What a lens was trained for, and how.

    - `model`: its name; `weights`: its `fingerprint`, "" for no model's in particular.
    - `stack`, `n_layers`, `d_model`: whose streams it reads.
    - `settings`: of the training. `versions`: of what it ran on.
    - `held_out`: the rows of `TunedLens.held_out`.
    """

    model: str
    stack: str
    n_layers: int
    d_model: int
    weights: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    held_out: list[dict[str, Any]] = field(default_factory=list)
