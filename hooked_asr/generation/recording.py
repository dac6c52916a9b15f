"""One recording of any length, and how far it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hooked_asr.generation.result import Segment
from hooked_asr.generation.segments import Cut
from hooked_asr.generation.window import Heard

Frames = Float[Tensor, "n_mels frame"]


@dataclass(eq=False)
class Recording:
    """One recording on its way: its log-mel frames, how far it is decoded, and what was heard.

    Of its `n_frames`, which are decoded, `n_heard` are sound and the rest padding. `cuts` are the
    pieces of the transcript so far, the given prompt's text first.
    """

    clip: int
    mel: Frames
    n_frames: int
    n_heard: int
    language: str | None = None
    seek: int = 0
    conditioned: bool = False
    cuts: list[Cut] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.seek >= self.n_frames

    def window(self, n_frames: int, seek: int | None = None) -> Frames:
        """The next window (or that from `seek` on), with nothing behind the recording's end."""
        start = self.seek if seek is None else seek
        piece = self.mel[:, start : min(start + n_frames, self.n_frames)]
        return F.pad(piece, (0, n_frames - piece.shape[1]))
