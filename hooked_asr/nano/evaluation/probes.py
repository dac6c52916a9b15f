"""What a straight line through the encoder's activations tells of a clip, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.evaluation.decoding import batches, needed
from hooked_asr.nano.evaluation.sets import NOISY, SEED, TestClip, with_noise
from hooked_asr.nano.voices import Voice

FOLDS = 5
SNR = 10.0  # dB, of the noise that is to be told from no noise
_SAMPLES_PER_POSITION = SAMPLE_RATE // 50

Features = Float[np.ndarray, "clip d_enc"]


@dataclass(frozen=True)
class Question:
    """What is to be told of clips: an answer for each, and who speaks (or which sound it is)."""

    clips: Sequence[TestClip]
    answers: Sequence[str]

    @property
    def groups(self) -> list[str]:
        return [clip.voice.speaker if clip.voice else clip.kind for clip in self.clips]


def probes(
    model: HookedWhisper,
    clean: Sequence[TestClip],
    nonspeech: Sequence[TestClip],
    seed: int = SEED,
) -> dict[str, dict[str, Any]]:
    """The accuracy of a logistic regression on each layer, beside that of the commonest answer.

    It is trained on some speakers (kinds of sound, for non-speech) and scored on the others, in
    five folds. Activations are averaged over the positions that have sound.
    """
    needed("sklearn")
    conditions = [clean, *(with_noise(clean, kind, SNR, seed) for kind in NOISY)]
    heard = [clip for clips in conditions for clip in clips] + list(nonspeech)
    layers = averaged_activations(model, heard)
    row = {id(clip): i for i, clip in enumerate(heard)}
    results = {}
    for name, asked in _questions(heard).items():
        rows = [row[id(clip)] for clip in asked.clips]
        results[name] = {
            "clips": len(rows),
            "chance": max(Counter(asked.answers).values()) / len(rows),
            "accuracy": {layer: accuracy(x[rows], asked) for layer, x in layers.items()},
        }
    return results


def accuracy(features: Features, asked: Question) -> float | None:
    """The share of clips told right by a probe trained on the other folds' clips; None where the
    clips are all of one speaker.
    """
    answers, groups = np.array(asked.answers), np.array(asked.groups)
    n_folds = min(FOLDS, len(set(asked.groups)))
    if n_folds < 2:
        return None
    right = np.zeros(len(answers), bool)
    folds = needed("sklearn.model_selection").GroupKFold(n_folds)
    for train, test in folds.split(features, answers, groups):
        probe = _probe(single=len(set(answers[train])) == 1)
        right[test] = (
            probe.fit(features[train], answers[train]).predict(features[test]) == (answers[test])
        )
    return float(right.mean())


def averaged_activations(model: HookedWhisper, clips: Sequence[TestClip]) -> dict[str, Features]:
    """The front end's output and each layer's, averaged over the positions that have sound."""
    n_layers = model.config.encoder.n_layers
    hooks = {"front end": "hook_embed"}
    hooks |= {f"layer {i}": f"encoder.{i}.hook_resid_post" for i in range(n_layers)}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in hooks}
    for batch, mel in batches(model, clips):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                mel, stop_at=f"encoder.{n_layers}", names_filter=list(hooks.values())
            )
        for name, hook in hooks.items():
            for clip, activation in zip(batch, cache[hook].float().cpu(), strict=True):
                positions = math.ceil(len(clip.samples) / _SAMPLES_PER_POSITION)
                rows[name].append(activation[:positions].mean(0).numpy())
    return {name: np.stack(averages) for name, averages in rows.items()}


def _questions(heard: Sequence[TestClip]) -> dict[str, Question]:
    def ask(clips: Sequence[TestClip], attribute: str) -> Question:
        return Question(clips, [str(getattr(_voice(clip), attribute)) for clip in clips])

    clean = [clip for clip in heard if clip.kind == "clean"]
    speech = [clip for clip in heard if clip.voice]
    quiet = [clip for clip in heard if clip.kind == "clean" or not clip.voice]
    return {
        "speaker's sex": ask(clean, "sex"),
        "English accent": ask([clip for clip in clean if clip.language == "en"], "accent"),
        "noise": Question(speech, [clip.kind for clip in speech]),
        "speech": Question(quiet, [str(clip.voice is not None) for clip in quiet]),
        "language": ask(clean, "language"),
    }


def _voice(clip: TestClip) -> Voice:
    assert clip.voice is not None, "sounds that are not speech are asked nothing of a voice"
    return clip.voice


def _probe(single: bool) -> Any:
    """A fresh probe; of a `single` answer in training there is nothing to learn."""
    if single:
        return needed("sklearn.dummy").DummyClassifier()
    return needed("sklearn.pipeline").make_pipeline(
        needed("sklearn.preprocessing").StandardScaler(),
        needed("sklearn.linear_model").LogisticRegression(max_iter=2000),
    )
