"""Charts hold the numbers they were given, and their files need nothing else."""

import math
import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_asr.patching import SweepResult
from hooked_asr.patching.result import ResultError
from hooked_asr.viz.figure import save
from hooked_asr.viz.heatmap import heatmap
from hooked_asr.viz.lines import lines

TWO = {"layer": [0, 1], "head": [0, 1, 2]}
THREE = {"layer": [0, 1], "component": ["mlp", "attn"], "position": ["0 <start>", "1 so", "2-9"]}
VALUES = torch.tensor([[0.5, -2.0, 0.0], [1.0, 0.25, -0.125]])


def drawn(values, axes, **options):
    return heatmap(values, axes, label="change", **options).to_dict()


def encoding(chart):
    return chart.get("spec", chart)["encoding"]


def test_two_axes_go_down_and_across():
    chart = drawn(VALUES, TWO)
    assert (encoding(chart)["y"]["field"], encoding(chart)["x"]["field"]) == ("layer", "head")
    cells = chart["data"]["values"]
    assert cells[1] == {"layer": 0, "head": 1, "change": -2.0}
    assert {(c["layer"], c["head"]): c["change"] for c in cells} == {
        (layer, head): VALUES[layer, head].item() for layer in range(2) for head in range(3)
    }


def test_the_middle_one_of_three_axes_has_a_panel_for_each_label():
    values = torch.arange(12.0).reshape(2, 2, 3)
    chart = drawn(values, THREE)
    assert (encoding(chart)["y"]["field"], encoding(chart)["x"]["field"]) == ("layer", "position")
    assert chart["facet"]["field"] == "component"
    cells = chart["data"]["values"]
    assert len(cells) == 12
    for cell in cells:
        place = [labels.index(cell[name]) for name, labels in THREE.items()]
        assert cell["change"] == values[tuple(place)].item()


def test_numbers_among_texts_become_texts():
    axes = {"layer": [0, 1], "position": [0, "1-2"]}
    chart = heatmap(torch.zeros(2, 2), axes, label="change").to_dict()
    assert chart["encoding"]["x"]["scale"]["domain"] == ["0", "1-2"]
    assert chart["encoding"]["y"]["scale"]["domain"] == [0, 1]
    assert {cell["position"] for cell in chart["data"]["values"]} == {"0", "1-2"}


def test_labels_keep_their_order():
    chart = drawn(torch.zeros(2, 2, 3), THREE)
    assert encoding(chart)["y"]["scale"]["domain"] == THREE["layer"]
    assert encoding(chart)["x"]["scale"]["domain"] == THREE["position"]
    assert chart["facet"]["sort"] == THREE["component"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6))
@settings(deadline=None, max_examples=25)
def test_zero_is_in_the_middle_of_the_colours(numbers):
    low, high = encoding(drawn(torch.tensor(numbers).reshape(2, 3), TWO))["color"]["scale"][
        "domain"
    ]
    assert low == -high < 0
    assert high == (max(map(abs, numbers)) or 1.0)


def test_more_is_red_and_less_is_blue(tmp_path):
    axes = {"layer": [0], "head": [0, 1, 2]}
    save(heatmap(torch.tensor([[1.0, 0.0, -1.0]]), axes, label="change"), tmp_path / "figure.svg")
    drawing = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    fills = re.findall(r'aria-label="head: (\d).*?fill="rgb\((\d+), (\d+), (\d+)\)"', drawing)
    colours = {head: [int(part) for part in rgb] for head, *rgb in fills}
    assert colours["0"][0] > 2 * colours["0"][2]
    assert colours["2"][2] > 2 * colours["2"][0]
    assert min(colours["1"]) > 230


def test_a_value_has_the_colours_of_its_range():
    scale = encoding(drawn(VALUES, TWO, centred=False))["color"]["scale"]
    assert scale == {"scheme": "viridis"}


def test_cells_without_a_finite_value_stay_empty_and_move_no_other(tmp_path):
    values = VALUES.clone()
    values[0, 1], values[1, 0] = math.nan, math.inf
    chart = drawn(values, TWO)
    assert [cell["change"] for cell in chart["data"]["values"]] == [
        *(0.5, None, 0.0),
        *(None, 0.25, -0.125),
    ]
    assert encoding(chart)["color"]["scale"]["domain"] == [-0.5, 0.5]
    assert encoding(chart)["x"]["scale"]["domain"] == [0, 1, 2]
    save(heatmap(values, TWO, label="change"), tmp_path / "figure.svg")


@pytest.mark.parametrize("number", [0.0, 3.0, math.nan])
def test_a_constant_can_be_drawn(tmp_path, number):
    for centred in (True, False):
        chart = heatmap(torch.full((2, 3), number), TWO, label="change", centred=centred)
        save(chart, tmp_path / "figure.png")
        assert png_size(tmp_path / "figure.png")


def test_long_axes_get_thinner_cells_and_as_many_labels_as_fit():
    chart = drawn(torch.zeros(4, 1500), {"layer": list(range(4)), "position": list(range(1500))})
    assert (chart["width"], chart["height"]) == (900, 4 * 28)
    shown = encoding(chart)["x"]["axis"]["values"]
    assert shown[0] == 0
    assert 40 < len(shown) <= 900 / 14
    assert encoding(chart)["y"]["axis"]["values"] == [0, 1, 2, 3]


def test_more_cells_than_a_data_frame_may_have(tmp_path):
    axes = {"layer": list(range(32)), "head": list(range(20)), "position": list(range(10))}
    save(heatmap(torch.randn(32, 20, 10), axes, label="change"), tmp_path / "figure.html")
    assert (tmp_path / "figure.html").stat().st_size > 6400 * 20


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2,), {"layer": [0, 1]}),
        ((2, 1, 1, 1), {"layer": [0, 1], "a": [0], "b": [0], "c": [0]}),
        ((3, 2), TWO),
        ((6,), TWO),
    ],
)
def test_axes_that_do_not_fit_are_refused(shape, axes):
    with pytest.raises(ValueError, match="2 or 3 axes"):
        heatmap(torch.zeros(shape), axes, label="change")


def test_titles_and_tooltips_say_what_is_shown():
    chart = drawn(VALUES, TWO, title="replace: kl", subtitle="tiny; clean 0.000")
    assert chart["title"]["text"] == "replace: kl"
    assert chart["title"]["subtitle"] == "tiny; clean 0.000"
    assert [entry["field"] for entry in encoding(chart)["tooltip"]] == ["layer", "head", "change"]


# --- Files ----------------------------------------------------------------------------------------


def png_size(path):
    """Width and height, from the header that every PNG begins with."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_page_needs_no_network(tmp_path):
    save(heatmap(VALUES, TWO, label="change", title="of heads"), tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert "of heads" in page
    assert "-0.125" in page
    without_code = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert "<script" in without_code
    assert not re.findall(r"\b(?:src|href)\s*=|@import|url\(", without_code)


def test_a_picture_is_as_large_as_its_cells(tmp_path):
    save(heatmap(VALUES, TWO, label="change"), tmp_path / "figure.png")
    width, height = png_size(tmp_path / "figure.png")
    assert 2 * 3 * 28 < width < 600
    assert 2 * 2 * 28 < height < 600


def test_three_axes_make_a_picture_too(tmp_path):
    save(heatmap(torch.randn(2, 2, 3), THREE, label="change"), tmp_path / "figure.png")
    width, height = png_size(tmp_path / "figure.png")
    assert width > 2 * 2 * 3 * 28  # two panels beside each other
    assert height > 2 * 2 * 28


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_other_formats(tmp_path, suffix):
    save(heatmap(VALUES, TWO, label="change"), tmp_path / f"figure{suffix}")
    begin = (tmp_path / f"figure{suffix}").read_bytes()[:4]
    assert begin == {".svg": b"<svg", ".pdf": b"%PDF"}[suffix]


def test_a_failed_save_leaves_what_was_there(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"an older one")

    class Broken:
        def to_dict(self):
            return {}

        def save(self, name, **options):
            with open(name, "wb") as file:
                file.write(b"half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        save(Broken(), path)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_format_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="docx"):
        save(heatmap(VALUES, TWO, label="change"), tmp_path / "figure.docx")
    assert not list(tmp_path.iterdir())


# --- The figure of a sweep ------------------------------------------------------------------------


def result(reference=2.0, tokens=None, axes=TWO):
    shape = tuple(map(len, axes.values()))
    values = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + 1
    return SweepResult(
        values=values,
        axes=axes,
        sites=["site"] * values.numel(),
        clean=1.0,
        reference=reference,
        metric="kl(pos=None)",
        operation="replace",
        alpha=1.0,
        model="some/where/whisper-tiny",
        tokens=tokens,
    )


def test_a_sweep_shows_its_change_its_value_or_its_share():
    one = result(reference=3.0)
    for what, expected in (
        ("change", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ("value", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("normalized", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]),
    ):
        chart = one.plot(what).to_dict()
        assert [cell[what] for cell in chart["data"]["values"]] == expected
        assert chart["title"]["text"] == "replace: kl(pos=None)"
        assert chart["title"]["subtitle"] == "whisper-tiny; clean 1.000, reference 3.000"


def test_a_sweep_without_a_reference_names_none():
    chart = result(reference=math.nan).plot().to_dict()
    assert chart["title"]["subtitle"] == "whisper-tiny; clean 1.000"


def test_positions_carry_their_tokens():
    axes = {"layer": [0, 1], "position": [0, 2]}
    chart = result(axes=axes, tokens=["<start>", " ask", " not"]).plot().to_dict()
    assert encoding(chart)["x"]["scale"]["domain"] == ["0 <start>", "2  not"]


def test_the_same_token_twice_has_two_cells():
    axes = {"layer": [0], "position": [0, 1]}
    chart = result(axes=axes, tokens=[" so", " so"]).plot().to_dict()
    assert len(set(encoding(chart)["x"]["scale"]["domain"])) == 2


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg", ".pdf"])
def test_a_sweep_saves_its_figure(tmp_path, suffix):
    result().save(tmp_path / f"figure{suffix}")
    assert (tmp_path / f"figure{suffix}").stat().st_size > 1000


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ResultError, match="value, change, normalized; got 'values'"):
        result().plot("values")
    with pytest.raises(ResultError, match="every normalized of this result is NaN"):
        result(reference=math.nan).plot("normalized")


def test_lines_hold_their_points_in_order_and_leave_out_what_has_no_value():
    panels = {"sex": {"probe": [("front end", 0.5), ("layer 0", 0.9), ("layer 1", math.nan)]}}
    chart = lines(panels, x="layer", y="accuracy").to_dict()
    (panel,) = chart["hconcat"]
    assert [point["layer"] for point in chart["data"]["values"]] == ["front end", "layer 0"]
    assert panel["encoding"]["x"]["sort"] == ["front end", "layer 0"]
    assert panel["encoding"]["x"]["type"] == "ordinal"


def test_numbers_make_a_scale_and_each_panel_its_lines(tmp_path):
    panels = {
        "a": {"loss": [(0, 8.0), (10, 2.0)], "other": [(0, 4.0)]},
        "b": {"loss": [(0, 1.0)]},
    }
    chart = lines(panels, x="step", y="nats", title="Training", log=True)
    first, second = chart.to_dict()["hconcat"]
    assert first["encoding"]["x"]["type"] == "quantitative"
    assert first["encoding"]["y"]["scale"]["type"] == "log"
    assert len(first["data"]["values"]) == 3
    assert second["title"] == "b"
    save(chart, tmp_path / "lines.png")
    assert (tmp_path / "lines.png").stat().st_size > 5_000


def test_bounds_make_figures_comparable():
    chart = heatmap(
        torch.tensor([[1.0, 2.0]]),
        {"layer": [0], "head": [0, 1]},
        label="n",
        centred=False,
        bounds=(0.0, 5.0),
    )
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == [0, 5]
