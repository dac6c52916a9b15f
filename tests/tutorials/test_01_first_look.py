"""The first tutorial, on the bundled clips."""

from hooked_asr.reproduce import Results, reproduce


def test_a_first_look(tmp_path):
    names = reproduce("01", out=tmp_path, say=lambda text: None)
    assert "green" in names["heard"]["quiet"]
    assert "green" not in names["heard"]["babble"]
    assert "green" in names["heard"][f"babble, {names['layer']} from quiet"]
    found = {one.name: one.value for one in Results.load(tmp_path / "results.json").numbers}
    changed = found["logit difference with it patched"]
    assert found["logit difference, noisy"] < changed < found["logit difference, clean"]
    assert list(tmp_path.glob("figure*.png"))
