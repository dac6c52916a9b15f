"""Tokens put together into words, each with its time and how sure the model was of it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hooked_asr.errors import HookedASRError
from hooked_asr.speech.languages import has_spaces

# What a word takes along, as OpenAI has it. The reference looks for the whole mark in these
# strings, so that neighbours such as ")]" count as one mark; we do as it does.
_OPENING = "\"'“¡¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are no character yet


class WordsError(HookedASRError):
    """Tokens, times and probabilities that do not belong together."""


@dataclass(frozen=True)
class Word:
    """A word of a transcript, from `start` to `end` (s), with the space before it in its text.

    `probability` is the mean over its tokens, as OpenAI gives it; None where none were given.
    """

    text: str
    start: float
    end: float
    tokens: tuple[int, ...]
    probability: float | None = None


def combine_into_words(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    times: Float[Tensor, "token start_end"],
    probabilities: Sequence[float] | None = None,
    language: str | None = None,
) -> list[Word]:
    """Tokens into words, by the rules of transformers' `_combine_tokens_into_words`.

    A word begins at a space, or at each character where a language is written without spaces; a
    mark belongs to the word that it touches. The texts of all words make up the transcript.

    Args:
        tokenizer: The checkpoint's own.
        tokens: The transcript's. Leave out special tokens and time stamps: each that stands among
            them becomes a word of its own.
        times: Start and end (s) of each token, from `token_times`.
        probabilities: The model's, of each token.
        language: Its code or English name; by default the tokenizer's, or else English.

    Raises:
        WordsError: There are not as many times, or probabilities, as tokens.
        LanguageError: Whisper has no such language.
    """
    _check_lengths(tokens, times, probabilities)
    words = []
    for text, start, stop in word_spans(tokenizer, tokens, language):
        sure = None if probabilities is None else fmean(probabilities[start:stop])
        begin, end = times[start, 0].item(), times[stop - 1, 1].item()
        words.append(Word(text, begin, end, tuple(tokens[start:stop]), sure))
    return words


def word_spans(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], language: str | None = None
) -> list[tuple[str, int, int]]:
    """The text of each word, its first token, and the one behind its last; see
    `combine_into_words`.
    """
    pieces = _characters(tokenizer, list(tokens))
    if has_spaces(language or getattr(tokenizer, "language", None) or "english"):
        pieces = _split_at_spaces(pieces, first_special=tokenizer.eos_token_id)
    pieces = _with_closing_marks(_with_opening_marks(pieces))
    stops = list(accumulate(len(piece.tokens) for piece in pieces))
    return [
        (piece.text, stop - len(piece.tokens), stop)
        for piece, stop in zip(pieces, stops, strict=True)
    ]


@dataclass(frozen=True)
class _Piece:
    text: str
    tokens: tuple[int, ...]

    def __add__(self, other: _Piece) -> _Piece:
        return _Piece(self.text + other.text, self.tokens + other.tokens)


def _characters(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[_Piece]:
    """The fewest tokens at a time that decode to whole characters."""
    full = _decode(tokenizer, tokens)
    pieces: list[_Piece] = []
    start = n_characters = 0
    for stop in range(1, len(tokens) + 1):
        text = _decode(tokenizer, tokens[start:stop])
        broken = text.find(_BROKEN)
        # A character that is broken in the full text too will never be whole.
        if broken < 0 or full[n_characters + broken :][:1] in ("", _BROKEN):
            pieces.append(_Piece(text, tuple(tokens[start:stop])))
            start = stop
            n_characters += len(text)
    return pieces


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, decode_with_timestamps=True))


def _split_at_spaces(pieces: list[_Piece], first_special: int) -> list[_Piece]:
    words: list[_Piece] = []
    for piece in pieces:
        special = piece.tokens[0] >= first_special
        mark = piece.text.strip() in string.punctuation
        if special or mark or piece.text.startswith(" ") or not words:
            words.append(piece)
        else:
            words[-1] += piece
    return words


def _with_opening_marks(pieces: list[_Piece]) -> list[_Piece]:
    backwards: list[_Piece] = []
    for piece in reversed(pieces):
        if backwards and piece.text.startswith(" ") and piece.text.strip() in _OPENING:
            backwards[-1] = piece + backwards[-1]
        else:
            backwards.append(piece)
    return backwards[::-1]


def _with_closing_marks(pieces: list[_Piece]) -> list[_Piece]:
    words: list[_Piece] = []
    for piece in pieces:
        if words and not words[-1].text.endswith(" ") and piece.text in _CLOSING:
            words[-1] += piece
        else:
            words.append(piece)
    return words


def _check_lengths(
    tokens: Sequence[int],
    times: Float[Tensor, "token start_end"],
    probabilities: Sequence[float] | None,
) -> None:
    n_probabilities = "no" if probabilities is None else len(probabilities)
    if len(times) != len(tokens) or n_probabilities not in ("no", len(tokens)):
        raise WordsError(
            f"{len(tokens)} tokens, {len(times)} times, {n_probabilities} probabilities: give one "
            "of each for every token"
        )
