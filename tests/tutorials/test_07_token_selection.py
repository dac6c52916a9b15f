"""Token selection: the lens finds the paper's curves, and chance beside them."""

import pytest

from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")
pytest.importorskip("phonemizer")


def test_candidates_come_to_sound_like_the_token(tmp_path):
    sizes = {"clips": 12, "lens_clips": 20, "lens_steps": 0}
    names = reproduce("07", out=tmp_path, say=lambda text: None, **sizes)
    assert sorted(names["corpus"].to_pandas()["language"].unique()) == ["de", "en", "es"]
    table = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    found = {name: one.value for name, one in table.items()}
    early, late = "first layer", "last layer"
    near, chance = "phoneme error rate, but the final token", "phoneme error rate, by chance"
    assert found[f"{near}, {late}"] < found[f"{near}, {early}"] < found[f"{chance}, {early}"]
    assert abs(found[f"{chance}, {late}"] - found[f"{chance}, {early}"]) < 0.15
    assert found["cosine, but the final token, last layer"] > found["cosine, by chance, last layer"]
    plain = "probability of the final token, first layer"
    assert 0.2 < found[plain] < found[f"{plain}, tuned lens"] < 0.9
    assert 0 < found["mean saturation layer (stable)"] < 2
    assert table["phoneme error rate falls most into layer"].paper
    assert len(list(tmp_path.glob("figure*.png"))) == 5
