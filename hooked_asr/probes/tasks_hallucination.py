"""Transcripts without an error beside the worst ones, as long as each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hooked_asr.features import FeatureStore
from hooked_asr.manifests import Clip
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.stored import LabelledRows, chosen_rows
from hooked_asr.speech import LanguageError, count_word_errors, normaliser

FAITHFUL, HALLUCINATED = "faithful", "hallucinated"
_TOLERANCE = 0.2  # of the length of the longer one


@dataclass(frozen=True)
class Transcribed:
    """A row of the store: the word errors of its transcript, and how many tokens that has."""

    row: int
    wer: float
    n_tokens: int


def hallucination_rows(
    model: Any, clips: Sequence[Clip], store: FeatureStore, worst: float
) -> tuple[list[LabelledRows], str]:
    """Rows of the last token of a clip's own transcript, labelled by what that is worth.

    "hallucinated" are the clips with the highest word error rate, above 0 and `worst` of all at
    most; "faithful" are those at 0. As the state at the last token also tells how many came before
    it, each of the worst is paired with a faithful one whose transcript has the nearest number of
    tokens, no two with the same; where that is more than a fifth of the longer one away, it is
    left out. So both groups are of one size and alike in length. Empty transcripts are left out. In
    clips labelled speech = "no" nothing is said: whatever is heard there is invented.

    Raises `ProbeError` for clips without a text, or where fewer than two pairs are found.
    """
    found = transcribed(model, clips, store)
    pairs = matched(found, worst)
    n_zero = sum(one.wer == 0 for one in found)
    if len(pairs) < 2:
        raise ProbeError(
            f"of {len(found)} transcripts {n_zero} have no error, and {len(pairs)} of the worst "
            "are as long as one of these: give more recordings, some of them harder, or a larger "
            "share with worst="
        )
    rows = [one.row for pair in pairs for one in pair]
    labels = [label for _ in pairs for label in (HALLUCINATED, FAITHFUL)]
    least = min(bad.wer for bad, _ in pairs)
    lengths = [sum(one.n_tokens for one in side) / len(pairs) for side in zip(*pairs, strict=True)]
    about = (
        f"{len(pairs)} transcripts at a word error rate of {least:.2f} or more "
        f"({lengths[0]:.1f} tokens on average), and as many at 0 ({lengths[1]:.1f}), paired by "
        f"length; of {len(found)}"
    )
    return [chosen_rows(store, "hallucination", rows, labels)], about


def transcribed(model: Any, clips: Sequence[Clip], store: FeatureStore) -> list[Transcribed]:
    """The word errors of every transcript that says anything, in its language's spelling.

    Raises `ProbeError` for a clip without a text.
    """
    said = {clip.id: said_in(clip) for clip in clips}
    found = []
    for row, heard in enumerate(store.clips):
        text = said[heard.id]
        if text is None:
            raise ProbeError(
                f"clip {heard.id!r} has no text, by which errors are counted: give the manifest a "
                "column of them"
            )
        n_tokens = _n_tokens(model, heard.text or "")
        if n_tokens:
            counts = count_word_errors(text, heard.text or "", _spelling(heard.language))
            found.append(Transcribed(row, counts.rate, n_tokens))
    return found


def said_in(clip: Clip) -> str | None:
    """The words that a transcript is held to; "" in a sound that is no speech, None if not known.

    >>> said_in(Clip("hiss.wav", labels={"speech": "no"})), said_in(Clip("unknown.wav"))
    ('', None)
    """
    return "" if clip.text is None and clip.labels.get("speech") == "no" else clip.text


def matched(found: Sequence[Transcribed], worst: float) -> list[tuple[Transcribed, Transcribed]]:
    """The worst transcripts, worst first, each with one at 0 of about the same length.

    >>> found = [Transcribed(0, 0.0, 9), Transcribed(1, 0.5, 10), Transcribed(2, 0.0, 10)]
    >>> [(bad.row, good.row) for bad, good in matched(found, 0.5)]
    [(1, 2)]
    """
    faithful = [one for one in found if one.wer == 0]
    bad = sorted((one for one in found if one.wer > 0), key=lambda one: -one.wer)
    pairs = []
    for one in bad[: max(1, round(worst * len(found)))]:
        near = min(faithful, key=lambda other: abs(other.n_tokens - one.n_tokens), default=None)
        if near is None:
            break
        if abs(near.n_tokens - one.n_tokens) <= _TOLERANCE * max(near.n_tokens, one.n_tokens):
            faithful.remove(near)
            pairs.append((one, near))
    return pairs


def _n_tokens(model: Any, text: str) -> int:
    return len(model.tokenizer.encode(text, add_special_tokens=False)) if text else 0


def _spelling(language: str | None) -> Any:
    try:
        return normaliser(language or "en")
    except LanguageError:
        return normaliser("en")
