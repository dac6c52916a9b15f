"""Figures whose texts nobody chose."""

import pytest

from hooked_asr.viz.figure import save
from hooked_asr.viz.text_heatmap import text_heatmap


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg"])
def test_control_characters_are_written_out(tmp_path, suffix):
    cells = [{"token": f"{i} \x00\x0c", "layer": 0, "prob": 0.5, "top": "\x1b"} for i in range(2)]
    chart = text_heatmap(cells, across="token", down="layer", colour="prob", text="top")
    file = tmp_path / f"figure{suffix}"
    save(chart, file)
    assert file.stat().st_size > 1000
    if suffix == ".svg":
        assert r"\x1b" in file.read_text()
