"""A dictionary on the encoder: phones are told on other voices, and by neither control."""

import pytest

from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")
pytest.importorskip("sae_lens")


def test_features_are_phones_and_controls_are_not(tmp_path):
    sizes = {"clips": 15, "test_clips": 12, "frames": 20_000, "width": 192, "k": 8, "hisses": 4}
    steered = {"set_size": 20, "doses": (4.0,), "steered_clips": 1, "most_tokens": 10}
    read = {"classes": (("speech", "no"),)}
    names = reproduce("10", out=tmp_path, say=lambda text: None, **sizes, **steered, **read)
    found = {one.name: one.value for one in Results.load(tmp_path / "results.json").numbers}
    assert 0.2 < found["explained variance"] < 1
    assert found["features that tell a phone (F1 ≥ 0.6)"] > 5
    assert found["… with shuffled labels (phone)"] == found["… of permuted weights (phone)"] == 0
    assert found["best F1 (phone)"] > found["best F1 (word)"]
    assert found["AUC of a feature for speech no"] > 0.9
    assert found["told as de (sex female, 4 × the mean)"] == 0
    assert found["sounds with text"] > 0
    assert names["reading"].control.model.startswith("whisper-nano (permuted")
    assert (tmp_path / "pages" / "index.html").is_file()
    assert len(list(tmp_path.glob("figure*.png"))) >= 4
