"""Recordings with a word in question, as `sweep_dataset` takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hooked_asr.patching.words import HeardWord


def word_pairs(
    heard: Sequence[HeardWord], among: Sequence[HeardWord] | None = None
) -> list[dict[str, Any]]:
    """A row for each recording: forced with what was heard, measured by how far the model prefers
    the word that was said to its neighbour (log-probabilities, nats).

        wrong = [one for one in heard if one.verdict == "neighbour"]
        result = sweep_dataset(model, word_pairs(wrong), sites=components("decoder"))

    - `among`: recordings to look for twins in: where the same voice says the same sentence with the
      neighbour, that is the row's reference, and recordings without a twin are left out. None
      leaves the reference to the sweep.

    Rows about the same two words are one group.
    """
    twins = {_key(one, one.word): one.audio for one in among or ()}
    rows = []
    for one in heard:
        row = {
            "audio": one.audio,
            "id": one.id,
            "text": one.heard,
            "group": "/".join(sorted((one.word.lower(), one.neighbour.lower()))),
            "metric": f"preference:{one.word}/{one.neighbour}",
        }
        if one.asked.get("language"):
            row["language"] = one.asked["language"]
        twin = twins.get(_key(one, one.neighbour))
        if twin is not None:
            row["reference"] = twin
        if twin is not None or among is None:
            rows.append(row)
    return rows


def _key(one: HeardWord, word: str) -> tuple[str | None, str, str]:
    """Who says what, with the word left open, and which word."""
    frame = re.sub(rf"\b{re.escape(one.word)}\b", "{}", one.text, count=1, flags=re.IGNORECASE)
    return one.group, frame.lower(), word.lower()
