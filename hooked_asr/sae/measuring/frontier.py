"""Several autoencoders beside each other: how much they explain with how few features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import altair as alt

from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.measuring.plot import frontier_figure
from hooked_asr.sae.measuring.result import SAEMeasures

_PANELS = {"explained_variance": "explained variance", "kl": "KL (nats a token)"}


def frontier(measures: Mapping[str, SAEMeasures], level: float = 0.95) -> alt.HConcatChart:
    """Explained variance over L0, and KL over L0 beside it where it was measured.

        frontier({"k=16": measure_sae(a, model, clips), "k=32": measure_sae(b, model, clips)})

    Each autoencoder is a point, by its name, with intervals over clips both ways.

    Raises `SAEError` for none at all.
    """
    if not measures:
        raise SAEError("there are no measures to show: give at least one autoencoder's")
    points: list[dict[str, Any]] = []
    for name, one in measures.items():
        point: dict[str, Any] = {"name": name}
        for measure in ("l0", *_PANELS):
            value, low, high = asdict(one.estimate(measure, level)).values()
            point |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
        points.append(point)
    known = {
        name: label for name, label in _PANELS.items() if any(p[name] == p[name] for p in points)
    }
    first = next(iter(measures.values()))
    sites = ", ".join(dict.fromkeys(one.site for one in measures.values()))
    return frontier_figure(
        points,
        list(known.items()),
        title=f"Sparse autoencoders at {sites}",
        subtitle=f"{Path(first.model).name}, {len(first.clips)} clips; {level:.0%} intervals",
    )
