"""The path through a table of costs is transformers', and is found fast."""

import time

import numpy as np
import pytest
from transformers.models.whisper import generation_whisper as reference

from hooked_asr.speech import AlignmentError, warping_path


@pytest.mark.parametrize("kind", ["normal", "few values", "all alike"])
@pytest.mark.parametrize("seed", range(25))
def test_the_path_is_transformers(kind, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 25, size=2))
    costs = {
        "normal": rng.normal(size=shape),
        "few values": rng.integers(0, 3, size=shape).astype(float),
        "all alike": np.full(shape, 0.1),
    }[kind]
    for ours, theirs in zip(
        warping_path(costs), reference._dynamic_time_warping(costs), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_path_over_a_whole_window_is_fast():
    costs = np.random.default_rng(0).normal(size=(200, 1500))
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        warping_path(costs)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1


@pytest.mark.parametrize("costs", [np.zeros((0, 3)), np.zeros((3, 0)), np.full((2, 2), np.nan)])
def test_costs_without_a_path_are_refused(costs):
    with pytest.raises(AlignmentError):
        warping_path(costs)
