"""Words of two categories, told apart: a probe for each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hooked_asr.features import FeatureStore
from hooked_asr.manifests import Clip
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.stored import LabelledRows


def semantic_rows(
    clips: Sequence[Clip],
    store: FeatureStore,
    label: str,
    pairs: Sequence[tuple[str, str]] | None,
    categories: Mapping[str, Sequence[str]] | None,
) -> tuple[list[LabelledRows], str]:
    """For each pair of categories the rows of both.

    A clip's category is in its column `label`, or the one of `categories` among whose words or
    sentences its text is, but for case and marks. Clips that say the same are one group.

    Raises `ProbeError` for a category without a clip, a text that is of two, or fewer than two
    categories.
    """
    by_id = {clip.id: clip for clip in clips}
    kept = [by_id[one.id] for one in store.clips]
    of_text = None if categories is None else _of_text(categories)
    found = [
        clip.labels.get(label) if of_text is None else of_text.get(_bare(clip.text))
        for clip in kept
    ]
    known = sorted({str(one) for one in found if one is not None})
    asked = list(combinations(known, 2)) if pairs is None else [(a, b) for a, b in pairs]
    for name in {name for pair in asked for name in pair} | set(categories or ()):
        if name not in known:
            raise ProbeError(
                f"no clip is of the category {name!r}; there are {', '.join(known) or 'none'}"
            )
    if not asked:
        raise ProbeError(f"semantic probes tell two categories apart; got {', '.join(known)}")
    rows = [_pair(pair, found, kept) for pair in asked]
    sizes = ", ".join(f"{name} ({found.count(name)})" for name in known)
    return rows, f"categories: {sizes}; clips that say the same are one group"


def _pair(pair: tuple[str, str], found: Sequence[Any], clips: Sequence[Clip]) -> LabelledRows:
    places = [i for i, one in enumerate(found) if one is not None and str(one) in pair]
    return LabelledRows(
        " or ".join(pair),
        np.array(places, dtype=np.int64),
        [str(found[i]) for i in places],
        [_bare(clips[i].text) or f"clip {clips[i].id}" for i in places],
    )


def _of_text(categories: Mapping[str, Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, texts in categories.items():
        for text in map(_bare, texts):
            if found.setdefault(text, name) != name:
                raise ProbeError(
                    f"{text!r} is of the categories {found[text]!r} and {name!r}: leave it in one"
                )
    return found


def _bare(text: str | None) -> str:
    """A text without case and marks."""
    kept = "".join(one if one.isalnum() or one == "'" else " " for one in (text or "").casefold())
    return " ".join(kept.split())
