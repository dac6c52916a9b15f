"""Kinds of sparse autoencoders, as SAELens trains them, each with the few options that matter.

Sources: TopK and its auxiliary loss, "Scaling and evaluating sparse autoencoders" (2024);
BatchTopK, "BatchTopK Sparse Autoencoders" (2024); Matryoshka, "Learning Multi-Level Features with
Matryoshka Sparse Autoencoders" (2025); JumpReLU, "Jumping Ahead" (2024), its sparsity held at a
number of features by the quadratic penalty of Gemma Scope 2; gated, "Improving Dictionary Learning
with Gated Sparse Autoencoders" (2024); standard, "Towards Monosemanticity" (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.saelens import saelens

_TOP = {"k": 32.0, "aux": 1.0}


@dataclass(frozen=True)
class Architecture:
    """One kind: SAELens's name of its configuration, its options, and how they are told to it."""

    config: str
    options: Mapping[str, Any]
    told: Callable[[dict[str, Any], int, int], dict[str, Any]]


def _top(asked: dict[str, Any], n_features: int, steps: int) -> dict[str, Any]:
    return {"k": asked["k"], "aux_loss_coefficient": asked["aux"]}


def _topk(asked: dict[str, Any], n_features: int, steps: int) -> dict[str, Any]:
    if asked["k"] != int(asked["k"]):
        raise SAEError(f"topk keeps a whole number of features; got k={asked['k']}")
    return _top(asked, n_features, steps) | {"k": int(asked["k"])}


def _matryoshka(asked: dict[str, Any], n_features: int, steps: int) -> dict[str, Any]:
    shares = [*asked["levels"], 1.0]
    widths = sorted({max(1, round(share * n_features)) for share in shares})
    if not all(0 < share <= 1 for share in shares) or len(widths) < 2:
        raise SAEError(
            f"levels are shares of the features, from above 0 to 1; got {asked['levels']}"
        )
    return _top(asked, n_features, steps) | {"matryoshka_widths": widths}


def _jumprelu(asked: dict[str, Any], n_features: int, steps: int) -> dict[str, Any]:
    return {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": asked["k"],
        "l0_coefficient": asked["sparsity"],
        "l0_warm_up_steps": steps // 4,
        "jumprelu_bandwidth": asked["bandwidth"],
        "jumprelu_init_threshold": asked["threshold"],
        # The threshold alone moves too little, in a training of some thousand steps, to hold k.
        "jumprelu_ste_to_input": True,
        "pre_act_loss_coefficient": asked["aux"],
    }


def _l1(asked: dict[str, Any], n_features: int, steps: int) -> dict[str, Any]:
    return {"l1_coefficient": asked["sparsity"], "l1_warm_up_steps": steps // 4}


ARCHITECTURES: dict[str, Architecture] = {
    "batchtopk": Architecture("BatchTopKTrainingSAEConfig", _TOP, _top),
    "topk": Architecture("TopKTrainingSAEConfig", _TOP, _topk),
    "matryoshka": Architecture(
        "MatryoshkaBatchTopKTrainingSAEConfig", _TOP | {"levels": (0.125, 0.25, 0.5)}, _matryoshka
    ),
    "jumprelu": Architecture(
        "JumpReLUTrainingSAEConfig",
        {"k": 32.0, "sparsity": 1.0, "bandwidth": 1.0, "threshold": 0.1, "aux": 1e-3},
        _jumprelu,
    ),
    "gated": Architecture("GatedTrainingSAEConfig", {"sparsity": 2.0}, _l1),
    "standard": Architecture("StandardTrainingSAEConfig", {"sparsity": 2.0}, _l1),
}


def options_of(architecture: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an architecture: those given (None is none), and the others' defaults.

    >>> options_of("topk", {"k": 16, "sparsity": None})
    {'k': 16, 'aux': 1.0}

    Raises `SAEError` for an architecture, or an option of it, that there is not, with those that
    there are.
    """
    if architecture not in ARCHITECTURES:
        raise SAEError(f"architecture is one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
    known = ARCHITECTURES[architecture].options
    asked = {name: value for name, value in given.items() if value is not None}
    wrong = [name for name in asked if name not in known]
    if wrong:
        raise SAEError(f"{architecture} has the options {', '.join(known)}; got {', '.join(wrong)}")
    return {**known, **asked}


def n_features_of(width: int | str, d_in: int) -> int:
    """How many features: a number, or as a multiple of the site's width.

    >>> n_features_of("8x", 384), n_features_of(500, 384)
    (3072, 500)

    Raises `SAEError` for what is neither.
    """
    try:
        text = str(width)
        found = round(float(text[:-1]) * d_in) if text.endswith("x") else int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise SAEError(f"width is a number of features, or as '8x' the site's width; got {width!r}")
    return found


def training_sae(
    architecture: str,
    options: Mapping[str, Any],
    *,
    d_in: int,
    n_features: int,
    steps: int,
    seed: int,
    device: str,
) -> Any:
    """SAELens's training class of that kind, its weights drawn by the seed alone.

    Raises `SAEError` for options that do not fit.
    """
    kind, asked = ARCHITECTURES[architecture], dict(options)
    _check(asked, n_features)
    lens = saelens()
    config = getattr(lens, kind.config)(
        d_in=d_in,
        d_sae=n_features,
        device=device,
        normalize_activations="expected_average_only_in",
        **kind.told(asked, n_features, steps),
    )
    made = getattr(lens, kind.config.removesuffix("Config"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made(config)


def _check(asked: Mapping[str, Any], n_features: int) -> None:
    k = asked.get("k", 1)
    if not 0 < k <= n_features:
        raise SAEError(f"of {n_features} features from 1 to {n_features} are active; got k={k}")
    for name in ("aux", "sparsity", "bandwidth", "threshold"):
        if asked.get(name, 0) < 0:
            raise SAEError(f"{name} is from 0 up; got {asked[name]}")
