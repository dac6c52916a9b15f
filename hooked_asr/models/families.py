"""Every family of models, and loading one by name alone."""

from __future__ import annotations

import os
from typing import Any

from hooked_asr.config import ConfigError
from hooked_asr.models.qwen2_audio import HookedQwen2Audio
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.weights.checkpoint import Checkpoint

FAMILIES: dict[str, type[Recogniser]] = {
    family.source.model_type: family for family in (HookedWhisper, HookedQwen2Audio)
}


def from_pretrained(name: str | os.PathLike[str], **options: Any) -> Recogniser:
    """Load a checkpoint of any family; the options are `HookedWhisper.from_pretrained`'s.

    Raises `ConfigError` for a family that the library does not have.
    """
    hub = {key: value for key, value in options.items() if key not in ("device", "dtype")}
    return family_of(name, **hub).from_pretrained(name, **options)


def family_of(name: str | os.PathLike[str], **hub: Any) -> type[Recogniser]:
    """The class that loads a checkpoint."""
    model_type = Checkpoint(name, **hub).config().get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{os.fspath(name)} is of type {model_type!r}; there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
