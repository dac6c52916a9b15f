"""What a decoding gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generated:
    """What was said to one prompt: its text, and the new token ids without the end token.

    `text` is empty where the model has no tokenizer.
    """

    text: str
    tokens: list[int]
