"""Which tokens of transcripts are of a loop that should have ended, and probes that tell them."""

from __future__ import annotations

from typing import Any

import numpy as np

from hooked_asr.features import FeatureStore
from hooked_asr.manifests import Clips, read_clips
from hooked_asr.patching.loops import most_repeats, over_round
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.result import ProbeResult
from hooked_asr.probes.stored import chosen_rows, fit_rows
from hooked_asr.speech import find_loops
from hooked_asr.speech.repetition import MIN_REPEATS

LOOP, TEXT = "loop", "text"


def fit_loops(
    store: FeatureStore, clips: Clips, *, min_repeats: int = MIN_REPEATS, **options: Any
) -> ProbeResult:
    """Probe the sites of a store for whether a token is of a loop that should have ended.

        store = harvest(model, clips, "decoder.*.hook_resid_post", pool="tokens", out="tokens")
        Monitor(fit_loops(store, clips).probe(), threshold=0.9, alarm="loop")

    - `store`: rows for each token of the model's own transcripts (`harvest` with pool "tokens").
    - `clips`: what the store was harvested of: their texts are what was truly said.
    - `min_repeats`: see `loop_labels`; `options`: of `fit_probes`, but for groups, name and origin.

    Raises `ProbeError` for another store, or where no token is of a loop, or all are.
    """
    labels = loop_labels(store, clips, min_repeats=min_repeats)
    if len(set(labels)) < 2:
        raise ProbeError(
            f"all {len(labels)} tokens are {labels[0]!r}: a probe needs transcripts with loops and "
            "tokens without"
        )
    return fit_rows(store, chosen_rows(store, "loops", range(len(labels)), labels), **options)


def loop_labels(store: FeatureStore, clips: Clips, *, min_repeats: int = MIN_REPEATS) -> list[str]:
    """For each row of a store of tokens "loop" or "text".

    Of the longest loop of a transcript "loop" is what comes behind as many rounds as are truly said
    in a row (or `min_repeats`, where these are more). All else is text, the rounds before too.

    Raises `ProbeError` for a store of something else, or of other clips.
    """
    table = store.table()
    if "token_id" not in table:
        raise ProbeError(f"rows pooled by {store.pool!r} are no tokens: harvest with pool='tokens'")
    said = {clip.id: clip.text for clip in read_clips(clips)}
    unknown = [name for name in table["clip"].unique() if name not in said]
    if unknown:
        raise ProbeError(f"clip {unknown[0]!r} of the store is none of those given")
    labels = np.full(len(table), TEXT, dtype=object)
    for name, rows in table.groupby("clip", sort=False).indices.items():
        least = max(min_repeats, most_repeats(said[str(name)] or ""))
        tokens = table.iloc[rows]
        ids, texts = tokens["token_id"].tolist(), list(map(str, tokens["token"]))
        if over := over_round(texts, ids, least):
            labels[rows[over[0] : _end(ids)]] = LOOP
    return [str(label) for label in labels]


def _end(tokens: list[int]) -> int:
    """Behind the longest loop of a transcript."""
    longest = max(find_loops(tokens, 2), key=len, default=None)
    return len(tokens) if longest is None else longest.end
