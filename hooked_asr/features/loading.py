"""Reading recordings in a thread of its own, while the model is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from hooked_asr.audio import log_mel_and_mask
from hooked_asr.errors import HookedASRError
from hooked_asr.manifests import Clip

_AHEAD = 2  # batches that are read, or being read, while one runs

One = TypeVar("One")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Heard:
    """A clip as a model takes it.

    - `n_frames`: log-mel frames that are sound; the others are padding.
    - `prompt`: the token ids that ask for its transcript, where they hang on how long it is.
    """

    clip: Clip
    mel: Float[Tensor, "one n_mels frame"]
    mel_mask: Int[Tensor, "one frame"]
    n_frames: int
    prompt: list[int] | None = None


@dataclass(frozen=True, eq=False)
class Unusable:
    """A clip of which nothing can be kept, and why."""

    clip: Clip
    error: Exception

    @property
    def reason(self) -> str:
        return f"clip {self.clip.id!r} ({self.clip.audio_path}): {self.error}"


def heard(model: Any, clip: Clip, prompted: bool, asked: Mapping[str, Any]) -> Heard | Unusable:
    """Read one clip. `prompted`: its decoder will run too, `asked` like this."""
    try:
        if prompted and model.config.prefix:
            return _with_prompt(model, clip, asked)
        mel, mask = log_mel_and_mask(clip.audio_path, model.working_extractor)
        return Heard(clip, mel, mask, int(mask.sum()))
    except (HookedASRError, OSError) as error:
        return Unusable(clip, error)


def made_ahead(make: Callable[[One], Made], of: Iterable[One]) -> Iterator[Made]:
    """What `make` gives for each, in order, made in a thread that is a little ahead.

    >>> list(made_ahead(len, ["a", "bb", "ccc", ""]))
    [1, 2, 3, 0]
    """
    left = iter(of)
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hooked_asr reading")
    try:
        coming = deque(worker.submit(make, one) for one in islice(left, _AHEAD))
        while coming:
            made = coming.popleft().result()
            coming.extend(worker.submit(make, one) for one in islice(left, 1))
            yield made
    finally:
        worker.shutdown(cancel_futures=True)


def _with_prompt(model: Any, clip: Clip, asked: Mapping[str, Any]) -> Heard:
    path = clip.audio_path
    inputs = model.to_inputs(path, **model.settled(path, **asked))
    mask = inputs["mel_mask"].cpu()
    return Heard(clip, inputs["mel"], mask, int(mask.sum()), inputs["tokens"][0].tolist())
