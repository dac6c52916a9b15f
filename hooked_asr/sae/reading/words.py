"""The words that a model hears, each with its time: an alignment where none is given."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from hooked_asr.audio import AudioError
from hooked_asr.manifests import Clip
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.alignments import Aligned

_MARKS = string.punctuation + "¡¿«»“”„’…。，！？、"


def heard_words(
    model: Any, clips: Sequence[Clip], language: str | None = None, progress: bool = True
) -> dict[str, list[Aligned]]:
    """Each clip's words as the model hears them, in small letters and without marks.

    Those that cannot be read are left out: whoever reads them will say so.

    Raises `SAEError` for a model that tells no times; `GenerationError` for one without alignment
    heads.
    """
    if "language" not in model.asked_by:
        raise SAEError(f"{type(model).__name__} tells no times of words: give an alignment")
    found = {}
    for clip in tqdm(clips, desc="words", unit="clip", disable=not progress):
        try:
            (said,) = model.generate(
                clip.audio_path, language=clip.language or language, words=True
            )
        except (AudioError, OSError):
            continue
        words = [Aligned(plain_word(one.text), one.start, one.end) for one in said.words]
        found[clip.id] = [one for one in words if one.label]
    return found


def plain_word(text: str) -> str:
    """
    >>> plain_word(" Don't,")
    "don't"
    """
    return text.strip().strip(_MARKS).lower()
