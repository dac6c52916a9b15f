"""Where each clip stands in a prompt, and which moment of it each position hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hooked_asr import timing
from hooked_asr.models.inputs import InputError


@dataclass(frozen=True)
class AudioSpan:
    """One clip in a prompt: which row, which clip of all, and its decoder positions.

    >>> span = AudioSpan(row=0, clip=0, positions=range(5, 30))
    >>> span.seconds(6), span.encoder(6), span.frames(6), span.at(0.05)
    ((0.04, 0.08), range(2, 4), range(4, 8), 6)
    """

    row: int
    clip: int
    positions: range

    def seconds(self, position: int) -> tuple[float, float]:
        """From when to when (s, from the clip's beginning) a decoder position hears."""
        return timing.seconds(self._pooled(position), "pooled")

    def encoder(self, position: int) -> range:
        """The encoder positions that are pooled into a decoder position."""
        return self._spread(position, timing.FRAMES["pooled"] // timing.FRAMES["audio"])

    def frames(self, position: int) -> range:
        """The log-mel frames of a decoder position."""
        return self._spread(position, timing.FRAMES["pooled"])

    def at(self, seconds: float) -> int:
        """The decoder position that hears a moment of the clip.

        Raises `InputError` for a moment outside the clip.
        """
        pooled = int(seconds * timing.FRAMES_PER_SECOND // timing.FRAMES["pooled"])
        if not 0 <= pooled < len(self.positions):
            end = timing.seconds(len(self.positions) - 1, "pooled")[1]
            raise InputError(f"the clip lasts from 0 to {end:g} s; asked for {seconds:g} s")
        return self.positions[pooled]

    def _pooled(self, position: int) -> int:
        if position not in self.positions:
            first, last = self.positions[0], self.positions[-1]
            raise InputError(
                f"clip {self.clip} stands at positions {first} to {last}; asked for {position}"
            )
        return position - self.positions.start

    def _spread(self, position: int, width: int) -> range:
        first = self._pooled(position) * width
        return range(first, first + width)


def audio_spans(places: Tensor, lengths: Sequence[int]) -> list[AudioSpan]:
    """The clips, given where audio tokens are `[batch pos]` and how many each clip needs.

    Raises `InputError` where they do not fit.
    """
    found = places.nonzero().tolist()
    if len(found) != sum(lengths):
        raise InputError(
            f"the prompts have {len(found)} audio tokens, but the clips make {sum(lengths)} "
            f"positions ({', '.join(map(str, lengths))}): one token for each, as "
            "model.to_inputs writes them"
        )
    spans = []
    for clip, length in enumerate(lengths):
        if length < 1:
            raise InputError(f"clip {clip} is too short to make one position of 40 ms")
        (row, start), (last_row, last) = found[0], found[length - 1]
        if row != last_row or last - start != length - 1:
            raise InputError(
                f"the {length} audio tokens of clip {clip} must stand side by side in one row; "
                f"they begin at row {row}, position {start}, and end at row {last_row}, "
                f"position {last}"
            )
        spans.append(AudioSpan(row, clip, range(start, last + 1)))
        found = found[length:]
    return spans


def frame_counts(mel_mask: Tensor) -> list[int]:
    """Real frames of each clip, of a mask `[clip frame]`."""
    counts: list[int] = mel_mask.to(torch.bool).sum(1).tolist()
    return counts
