"""Semantic categories: words that were not fitted to, and a category of sound as a check."""

import pytest

from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")


def test_sound_is_told_and_pairs_stand_beside_their_baselines(tmp_path):
    sizes = {"categories": ("animal", "number"), "speakers": 1}
    names = reproduce("06", out=tmp_path, say=lambda text: None, layers=[3], folds=2, **sizes)
    found = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    assert found["short or long words"].value > 0.6
    mean = found["mean over pairs, last layer"]
    assert mean.low <= mean.value <= mean.high
    assert found["best pair, last layer"].value == mean.value  # the only pair
    assert found["best pair, last layer"].where == "animal or number"
    assert {"mean over pairs, log-mel", "mean over pairs, random weights"} <= found.keys()
    for one in names["found"].results.values():  # no word is on both sides of a fold
        assert len(set(one.groups)) == len(one.groups) == 33
    assert len(list(tmp_path.glob("figure*.png"))) == 3
