"""Tutorial 11 on a few chants: one head carries the loop, and a gated cure spares the rest."""

from hooked_asr.reproduce import Results, reproduce

SMALL = {
    "chants": 6,
    "sentences": 2,
    "train_chants": 8,
    "train_sentences": 4,
    "languages": ("en",),
    "forks": 2,
    "circuit_sizes": (100, 2000),
    "checked_edges": 3,
    "max_new_tokens": 44,
}


def test_one_head_carries_the_loop_and_a_gate_spares_what_does_not_loop(tmp_path):
    reproduce("11", out=tmp_path, say=lambda text: None, **SMALL)
    numbers = {one.name: one.value for one in Results.load(tmp_path / "results.json").numbers}
    assert numbers["choice at the fork, chant heard"] > 0 > numbers["choice at the fork, silence"]
    assert numbers["head that carries it"].startswith("decoder.2.cross_attn.")
    few, many = (value for name, value in numbers.items() if name.startswith("faithfulness"))
    assert few < many
    assert many > 0.7
    gated = numbers["chants that loop, layer deaf, gated"]
    assert gated <= numbers["chants that loop, as it is"]
    plain = numbers["word error rate, sentences, as it is"]
    assert numbers["word error rate, sentences, layer deaf, gated"] <= plain + 0.1
    assert len(list(tmp_path.glob("figure-*.png"))) == 7
