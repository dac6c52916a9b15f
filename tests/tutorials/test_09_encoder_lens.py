"""The encoder lens: words that nobody says, gone by the last layer."""

import pytest

from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")


def test_an_encoder_stopped_early_has_words_invented(tmp_path):
    sizes = {"clips": 9, "sounds": 12, "look_up": False, "max_new_tokens": 30}
    names = reproduce("09", out=tmp_path, say=lambda text: None, **sizes)
    found = {one.name: one.value for one in Results.load(tmp_path / "results.json").numbers}
    assert found["word error rate, layer 0"] > 0.6 > 0.1 > found["word error rate, last layer"]
    assert found["clips without a word, at most"] == 0
    assert found["taken for another language, last layer"] == 0
    silent = "sounds that are no speech, nothing written"
    assert found[f"{silent}, layer 0"] < found[f"{silent}, last layer"]
    assert set(names["lens"].rates("language")["language"]) == {"de", "en", "es"}
    assert found["clips with a loop, last layer"] == 0
    assert len(list(tmp_path.glob("figure*.png"))) == 2
