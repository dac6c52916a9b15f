"""Minimal pairs: the likelier word is written, though the sound tells the two apart."""

import pytest

from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")


def test_the_sound_is_heard_and_overruled(tmp_path):
    sizes = {"clips": 2, "alphas": (1.0,)}
    names = reproduce("05", out=tmp_path, say=lambda text: None, **sizes)
    found = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    assert found["the neighbour is written"].value > 0.5
    assert found["log-odds of the word, where its neighbour is"].value < (
        found["log-odds of the word, where it is said"].value
    )
    assert found["log-odds of the word, where it is said"].value < 0
    assert found["mended: any site"].paper.startswith("136/153")
    assert found["mended: any site"].value >= found["mended: best single site"].value
    model = names["model"].config
    assert names["mended"].reach().tries["any site"] == (
        2 * model.encoder.n_layers + 3 * model.decoder.n_layers
    )
    assert len(list(tmp_path.glob("figure*.png"))) == 4
