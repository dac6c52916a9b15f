"""Tutorial 08 on a few chants: cross-attention ends loops, and what that costs is counted."""

from hooked_asr.reproduce import Results, reproduce

SMALL = {"chants": 8, "stuck": 1, "switches": 1, "sentences": 3, "languages": ("en",)}


def test_the_cross_attention_of_a_layer_ends_most_loops(tmp_path):
    made = reproduce("08", out=tmp_path, say=lambda text: None, max_new_tokens=48, **SMALL)
    numbers = {one.name: one for one in Results.load(tmp_path / "results.json").numbers}
    assert len(made["looping"]) >= 2
    layer = numbers["loops mended by a layer, from silence"]
    assert layer.value >= 0.5
    assert layer.where.endswith("cross_attn")
    assert layer.paper.startswith("76 %")
    both = numbers.get("loops mended by two layers, from silence", layer)
    assert both.value >= layer.value
    assert numbers["word error rate, clean clips, as it is"].value < 0.1
    assert len(list(tmp_path.glob("figure-*.png"))) == 5
