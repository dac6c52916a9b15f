"""Sentences that a recogniser says to many clips in which nobody does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from hooked_asr.speech import find_loops

_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_LEAST = 2  # clips that have a sentence, for it to be called a stock one


def stock_sentences(
    heard: Sequence[tuple[str, Sequence[str]]], said: Sequence[str], k: int
) -> pd.DataFrame:
    """One row for each layer and sentence, the most frequent first; see `EncoderLens`.

    `heard`: each layer, with what is heard in each clip; `said`: what is said in each.

    >>> texts = ["So. Thank you. Thank you.", "Yes? Thank you!"]
    >>> stock_sentences([("0", texts)], ["So.", "Yes."], k=3).to_dict("records")
    [{'layer': '0', 'sentence': 'Thank you.', 'clips': 2, 'of': 2}]
    """
    rows = []
    for layer, texts in heard:
        counts: Counter[str] = Counter()
        written: dict[str, str] = {}
        for text, true in zip(texts, said, strict=True):
            own = _unsaid(text, true)
            counts.update(own.keys())
            written = own | written
        for words, count in counts.most_common(k):
            if count >= _LEAST:
                rows.append((layer, written[words], count, len(said)))
    return pd.DataFrame(rows, columns=["layer", "sentence", "clips", "of"])


def _unsaid(text: str, said: str) -> dict[str, str]:
    """The sentences that are not in what is said, by their words alone, and no loop."""
    sentences = {_words(one): one.strip() for one in _ENDS.split(text)}
    true = f" {_words(said)} "
    return {
        words: one
        for words, one in sentences.items()
        if words and f" {words} " not in true and not find_loops(words.split())
    }


def _words(text: str) -> str:
    """Words in lower case, a space between."""
    return " ".join(re.findall(r"\w+", text.casefold()))
