"""Figures whose texts nobody chose."""

import json

import pytest

from hooked_asr.viz.figure import save
from hooked_asr.viz.text_heatmap import text_heatmap


@pytest.fixture
def cells():
    return [{"token": f"{i} \x00\x0c", "layer": 0, "prob": 0.5, "top": "\x1b"} for i in range(2)]


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg"])
def test_control_characters_are_written_out(tmp_path, suffix, cells):
    chart = text_heatmap(cells, across="token", down="layer", colour="prob", text="top")
    file = tmp_path / f"figure{suffix}"
    save(chart.properties(title="\x07 bell"), file)
    assert file.stat().st_size > 1000
    if suffix == ".svg":
        assert r"\x1b" in file.read_text()
        assert r"\x07 bell" in file.read_text()


def test_a_heatmap_of_words_can_be_shown_as_it_is(cells):
    chart = text_heatmap(cells, across="token", down="layer", colour="prob", text="top")
    texts = json.dumps(chart.to_dict())
    assert not any(code in texts for code in (r"\u0000", r"\u000c", r"\f", r"\u001b"))
    assert all(code in texts for code in (r"\\x00", r"\\x0c", r"\\x1b"))
