"""Speech told from sounds, and from speech backwards, on a few clips."""

from hooked_asr.reproduce import Results, reproduce


def test_speech_or_not(tmp_path):
    few = {"clips": 20, "fresh_clips": 6, "folds": 3, "layers": (3,), "baselines": ("log-mel",)}
    reproduce("04", out=tmp_path, **few, say=lambda text: None)
    found = {one.name: one.value for one in Results.load(tmp_path / "results.json").numbers}
    assert found["sounds, log-mel"] > 0.9
    assert found["backwards, best layer"] > 0.8
    assert found["backwards, log-mel"] < 0.65
    words = "words written, no speech"
    assert found[f"{words}, fitted to all"] < 0.3 * found[f"{words}, no monitor"]
    spoken = "words written, speech"
    assert found[f"{spoken}, fitted to all"] > 0.7 * found[f"{spoken}, no monitor"]
    assert len(list(tmp_path.glob("figure*.png"))) == 2
