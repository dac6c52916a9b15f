"""How far streams are from the model's own distributions, with a tuned lens and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.lenses.tuned_clips import gathered, taught
from hooked_asr.lenses.tuned_objective import Objective
from hooked_asr.lenses.tuned_origin import LensOrigin
from hooked_asr.lenses.tuned_streams import RunStreams, Streams, layer_of
from hooked_asr.viz.lines import lines

_NAMES = {"logit_lens": "logit lens", "tuned_lens": "tuned lens"}


def evaluated(
    lens: Any,
    model: Any,
    audio: Any,
    texts: Any,
    batch_size: int,
    memory: int,
    progress: bool,
    asked: Mapping[str, Any],
) -> pd.DataFrame:
    """The rows of `TunedLens.evaluate`."""
    clips = gathered(model, audio, texts, asked, progress=progress)
    runs = taught(model, clips.clips, asked, batch_size=batch_size, progress=progress)
    streams = Streams(model, lens.origin.stack, runs, memory)
    objective = Objective(model, lens.origin.stack)
    return pd.DataFrame(mean_kls(lens, objective, streams, batch_size, progress))


@torch.no_grad()
def mean_kls(
    lens: Any,
    objective: Objective,
    runs: Sequence[RunStreams],
    batch_size: int,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """A row for each site: mean KL over positions, by the logit lens and by the tuned lens."""
    parts: dict[str, list[Float[Tensor, "site row"]]] = {name: [] for name in _NAMES}
    starts = range(0, len(runs), batch_size)
    for start in tqdm(starts, desc="held out", unit="batch", disable=not progress, leave=False):
        here = range(start, min(start + batch_size, len(runs)))
        batch = objective.batch([runs[i] for i in here])
        for name, one in (("logit_lens", _Untranslated(lens)), ("tuned_lens", lens)):
            parts[name].append(torch.stack(list(batch.kls(one))))
    means = {name: torch.cat(found, 1).double().mean(1) for name, found in parts.items()}
    positions = sum(part.shape[1] for part in parts["logit_lens"])
    return [
        {
            "layer": layer_of(site),
            **{name: mean[i].item() for name, mean in means.items()},
            "positions": positions,
        }
        for i, site in enumerate(lens.sites)
    ]


class _Untranslated:
    """The sites of a lens, with their streams as they are."""

    def __init__(self, lens: Any) -> None:
        self.sites = lens.sites

    def __call__(self, site: str, stream: Tensor) -> Tensor:
        return stream


def figure(table: pd.DataFrame, origin: LensOrigin) -> alt.HConcatChart:
    """KL by layer on a logarithmic scale, a line for each lens."""
    drawn = {
        label: list(zip(table["layer"], table[name], strict=True)) for name, label in _NAMES.items()
    }
    positions = int(table["positions"].iloc[0])
    return lines(
        {"": drawn},
        x=f"{origin.stack} layer",
        y="KL(final ‖ layer), nats",
        title=f"{Path(origin.model).name}: mean over {positions} positions",
        log=True,
    )
