"""Sex, noise and accent in the encoder, on a few clips."""

from hooked_asr.reproduce import Results, reproduce


def test_probing(tmp_path):
    few = {"clips": 24, "folds": 3, "layers": (0, 3), "baselines": ("log-mel",), "steered": 6}
    reproduce("02", out=tmp_path, **few, say=lambda text: None)
    numbers = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    found = {name: one.value for name, one in numbers.items()}
    assert found["noise"] > 0.9
    assert found["noise, log-mel"] > 0.9
    assert found["sex"] > found["sex, shuffled"] + 0.2
    assert (found["sex, classes"], found["accent, classes"], found["noise, classes"]) == (2, 6, 3)
    assert numbers["noise"].n == 3 * numbers["sex"].n == 72
    assert found["told the other sex at the last layer, difference of means"] >= 0.5
    assert found["transcripts changed, difference of means"] == 0
    assert found["sex, asked in words"] is None
    assert len(list(tmp_path.glob("figure*.png"))) == 3
