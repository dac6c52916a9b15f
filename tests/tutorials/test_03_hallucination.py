"""Hallucination: told at the last token, and by a monitor on voices that it never heard."""

import pytest

from hooked_asr.probes import LinearProbe
from hooked_asr.reproduce import Results, reproduce

pytest.importorskip("espeakng_loader")


def test_a_monitor_tells_wrong_transcripts_of_voices_that_it_never_heard(tmp_path):
    sizes = {"clips": 18, "snrs": (-5.0,), "folds": 3}
    names = reproduce("03", out=tmp_path, say=lambda text: None, **sizes)
    found = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    assert found["accuracy at the last token"].paper
    assert 0 <= found["accuracy at the last token"].low < 1
    # In quiet and in loud noise, the sound alone says what will go wrong.
    assert found["the same, log-mel"].value > 0.8
    assert found["the same, random weights"].value < 0.8 < found["the same, confidence"].value
    for name in ("probe", "low avg_logprob"):
        assert found[f"AUC on unseen voices, {name}"].value > 0.8
        assert found[f"AUC in the same noise, {name}"].value < (
            found[f"AUC on unseen voices, {name}"].value
        )
    assert found["flagged, probe"].where == "5% false alarms"
    assert LinearProbe.load(tmp_path / "hallucination.safetensors").site == names["site"]
    assert {one.group for one in names["fitted"]}.isdisjoint(one.group for one in names["unseen"])
    assert len(list(tmp_path.glob("figure*.png"))) == 5
