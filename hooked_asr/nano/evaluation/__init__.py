"""What whisper-nano does well, what it does badly, and what its encoder knows of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.evaluation.accuracy import (
    language_identification,
    timestamps,
    translations,
    word_error_rate,
    word_error_rates,
)
from hooked_asr.nano.evaluation.decoding import MissingPackageError, decode, needed
from hooked_asr.nano.evaluation.errors import (
    invented_text,
    loop,
    looping,
    loops,
    minimal_pairs,
    no_speech,
    verdict,
)
from hooked_asr.nano.evaluation.probes import probes
from hooked_asr.nano.evaluation.sets import SEED, build_test_sets
from hooked_asr.nano.pairs import PAIRS, MinimalPair

__all__ = [
    "MissingPackageError",
    "decode",
    "evaluate",
    "invented_text",
    "language_identification",
    "loop",
    "looping",
    "loops",
    "minimal_pairs",
    "no_speech",
    "probes",
    "timestamps",
    "translations",
    "verdict",
    "word_error_rate",
    "word_error_rates",
]


def evaluate(
    model: HookedWhisper,
    clips_per_language: int = 200,
    seed: int = SEED,
    progress: bool = True,
    pairs: Sequence[MinimalPair] = PAIRS,
) -> dict[str, Any]:
    """Speak the test sets and measure the model on them; the results can be written as JSON.

    Rates and shares lie between 0 and 1 (a word error rate may be more), times are in seconds.
    Fewer `clips_per_language` or `pairs` make for a quicker look.

    Raises `MissingPackageError` without jiwer and scikit-learn, `SynthesisError` without espeak-ng.
    """
    for module in ("jiwer", "sklearn"):
        needed(module)
    with tqdm(desc="test sets", total=9, unit="part", disable=not progress) as bar:
        sets = build_test_sets(clips_per_language, seed, model.config.n_frames / 100, pairs)
        clean, other = sets.clean, sets.nonspeech
        parts: dict[str, Callable[[], Any]] = {
            "wer": lambda: word_error_rates(model, clean, seed, progress),
            "language": lambda: language_identification(model, clean),
            "translation": lambda: translations(model, clean),
            "timestamps": lambda: timestamps(model, clean),
            "pairs": lambda: minimal_pairs(model, sets.pairs),
            "invented": lambda: invented_text(model, other),
            "no_speech": lambda: no_speech(model, clean, other),
            "loops": lambda: looping(model, [*clean, *sets.repetition]),
            "probes": lambda: probes(model, clean, other, seed),
        }
        results: dict[str, Any] = {
            "model": model.name,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "clips_per_language": clips_per_language,
            "seed": seed,
        }
        for name, measure in parts.items():
            bar.set_description(name)
            results[name] = measure()
            bar.update()
    return results
