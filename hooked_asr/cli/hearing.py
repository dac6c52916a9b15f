"""The options of `transcribe` turned into what each family of models is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooked_asr.cli.formats import Heard
from hooked_asr.cli.options import OptionError, asked
from hooked_asr.hooks import Hooks
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.monitors import Monitor, generate_monitored
from hooked_asr.speech import MAX_TOKEN_COMPRESSION

# Below this mean log-probability of a token (nats), Whisper's own decoding tries again.
_LEAST_LOGPROB = -1.0

Hear = Callable[[Path, Hooks, bool], Heard]


@dataclass(frozen=True)
class Wishes:
    """How recordings are to be transcribed, as it was asked for; None and empty where it was not.

    `asks` are the options by which families differ (language, task, prompt); `monitors` read along.
    """

    asks: dict[str, str | None] = field(default_factory=dict)
    timestamps: bool = False
    words: bool = False
    previous: str | None = None
    temperatures: Sequence[float] = ()
    beams: int | None = None
    seed: int | None = None
    monitors: Sequence[Monitor] = ()


def hearing(model: Recogniser, wishes: Wishes) -> Hear:
    """A function that transcribes one recording: `hear(path, hooks, progress)`.

    Raises `OptionError` for what this kind of model is not asked by, or does not do.
    """
    asks = asked(model, **wishes.asks)
    if isinstance(model, HookedWhisper):
        return _whisper(model, asks, wishes)
    return _asked_in_words(model, asks, wishes)


def _whisper(model: HookedWhisper, asks: dict[str, str], wishes: Wishes) -> Hear:
    options: dict[str, Any] = {
        **asks,
        "timestamps": wishes.timestamps,
        "words": wishes.words,
        "prompt": wishes.previous,
        "num_beams": wishes.beams or 1,
        "seed": wishes.seed,
        **_temperatures(model, wishes.temperatures),
    }
    return lambda path, hooks, progress: _heard(
        model, wishes, path, **options, fwd_hooks=hooks, progress=progress
    )


def _heard(model: Any, wishes: Wishes, *audio: Path, **options: Any) -> Heard:
    """The first of what `generate` gives, read along by monitors where there are any."""
    if not wishes.monitors:
        return Heard(model.generate(*audio, **options)[0])
    found = generate_monitored(model, wishes.monitors, *audio, **options)
    return Heard(found.said[0], [scores[0] for scores in found.by_monitor])


def _temperatures(model: HookedWhisper, temperatures: Sequence[float]) -> dict[str, Any]:
    """One temperature, or several with what decides on the next.

    Most checkpoints have no thresholds, and without any the second temperature would never come.
    """
    if len(temperatures) < 2:
        return {"temperature": temperatures[0] if temperatures else 0.0}
    thresholds = {
        "compression_ratio_threshold": MAX_TOKEN_COMPRESSION,
        "logprob_threshold": _LEAST_LOGPROB,
    }
    rules = model.generation_config
    open_ones = {k: v for k, v in thresholds.items() if getattr(rules, k, None) is None}
    return {"temperature": tuple(temperatures), **open_ones}


def _asked_in_words(model: Any, asks: dict[str, str], wishes: Wishes) -> Hear:
    _check_no_other_wishes(model, wishes)
    options: dict[str, Any] = {
        "temperature": wishes.temperatures[0] if wishes.temperatures else 0.0,
        "num_beams": wishes.beams or 1,
        "seed": wishes.seed,
    }

    def hear(path: Path, hooks: Hooks, progress: bool) -> Heard:
        inputs = model.to_inputs(path, **model.settled(path, **asks))
        return _heard(model, wishes, **inputs, **options, fwd_hooks=hooks, progress=progress)

    return hear


def _check_no_other_wishes(model: Recogniser, wishes: Wishes) -> None:
    others = {
        "--timestamps": wishes.timestamps,
        "--words": wishes.words,
        "--previous": wishes.previous is not None,
        "a second --temperature": len(wishes.temperatures) > 1,
    }
    for option, given in others.items():
        if given:
            raise OptionError(
                f"{type(model).__name__} is decoded once, to text and tokens without times: "
                f"leave out {option}; it is asked by "
                + " and ".join(f"--{known}" for known in model.asked_by)
            )
