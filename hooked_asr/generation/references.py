"""The recordings of references: the same windows as the target's, from the same moment on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hooked_asr.generation.lockstep import Reference
from hooked_asr.generation.options import DecodingOptions
from hooked_asr.generation.recording import Recording
from hooked_asr.generation.steps import GenerationError
from hooked_asr.timing import FRAMES_PER_SECOND


@dataclass(frozen=True, eq=False)
class ReferenceRecordings:
    """What one reference hears: a recording for each of the target's, or one for all."""

    reference: Reference
    recordings: Sequence[Recording]

    def check(self, targets: Sequence[Recording], options: DecodingOptions) -> None:
        """Raises `GenerationError` for references that cannot keep step with these targets."""
        if options.num_beams > 1:
            raise GenerationError(
                f"a Lockstep follows one row, and {options.num_beams} beams are several at once: "
                "leave out num_beams, or take a cache as the source"
            )
        if len(self.recordings) not in (1, len(targets)):
            raise GenerationError(
                f"{len(targets)} recordings take one reference, or as many; the Lockstep has "
                f"{len(self.recordings)}"
            )
        for target in targets:
            own = self._of(target)
            if own.n_frames < target.n_frames:
                raise GenerationError(
                    f"recording {target.clip} lasts {target.n_frames / FRAMES_PER_SECOND:g} s, its "
                    f"reference only {own.n_frames / FRAMES_PER_SECOND:g} s: pad it with silence, "
                    "or cut the recording"
                )

    def windows(self, active: Sequence[Recording], n_frames: int) -> dict[str, Tensor]:
        """The reference's inputs beside the next windows of these targets."""
        windows = [self._of(target).window(n_frames, target.seek) for target in active]
        return {"mel": torch.stack(windows)}

    def _of(self, target: Recording) -> Recording:
        return self.recordings[target.clip if len(self.recordings) > 1 else 0]
