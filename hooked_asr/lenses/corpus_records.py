"""From what is kept of each recording to a corpus's lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hooked_asr.lenses.corpus_clip import RULES, Settings
from hooked_asr.lenses.corpus_result import CorpusClip, CorpusLens, numbers
from hooked_asr.long_work import Done
from hooked_asr.manifests import Clip


def lens_of_records(model: Any, clips: Sequence[Clip], how: Settings, done: Done) -> CorpusLens:
    """The records of `clip_record` put together, in the order of the clips."""
    read = [(clip, done.results[clip.id]) for clip in clips if clip.id in done.results]
    records = [record for _, record in read]
    layers = list(range(model.config.decoder.n_layers))
    shape = len(records), len(layers)
    return CorpusLens(
        clips=[_clip(clip, record) for clip, record in read],
        layers=layers,
        measures={
            name: numbers([one["measures"][name] for one in records], shape)
            for name in records[0]["measures"]
        },
        saturated={
            rule: torch.tensor([one["saturated"][rule] for one in records]) for rule in RULES
        },
        top_k=how.top_k,
        ahead=how.ahead,
        force=how.force,
        model=model.name,
        tuned=how.tuned is not None,
        failed=done.failures,
    )


def _clip(clip: Clip, record: Mapping[str, Any]) -> CorpusClip:
    told = {name: record[name] for name in ("text", "language", "tokens")}
    return CorpusClip(id=clip.id, audio=clip.audio, group=clip.group, **told)
