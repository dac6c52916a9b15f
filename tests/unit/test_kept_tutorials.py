"""The tutorials as they are kept: run whole, with what they showed, and the tables made of it."""

from pathlib import Path

import nbformat
import pytest

from hooked_asr.reproduce import Results, tutorials
from hooked_asr.reproduce.notebooks import is_parameters
from hooked_asr.reproduce.tables import markdown, read_results

FOLDER = Path(__file__).parents[2] / "tutorials"
KEPT = tutorials()
ASKED = ["model_name", "manifest", "out", "device", "seed"]


def test_all_are_there():
    assert [one.number for one in KEPT] == [f"{i:02}" for i in range(1, 12)]


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.path.stem)
def test_a_kept_notebook_is_that_of_one_whole_run(kept):
    notebook = nbformat.read(kept.path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert is_parameters(code[0])
    assert set(ASKED) <= kept.parameters.keys()
    assert kept.parameters["model_name"] == "whisper-nano"
    assert kept.parameters["out"] == f"reproduced/{kept.number}"
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = kept.path.read_text(encoding="utf-8")
    assert not any(folder in text for folder in ("/tmp/", "/home/", "/root/", "/work/"))


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.path.stem)
def test_a_kept_table_is_that_of_the_kept_notebook(kept):
    results = Results.load(FOLDER / "results" / f"{kept.number}-whisper-nano.json")
    assert results.command == f"hooked-asr reproduce {kept.number}"
    assert results.model == "whisper-nano"
    notebook = nbformat.read(kept.path, as_version=4)
    (shown,) = notebook.cells[-1].outputs
    for number in results.numbers:
        assert number.name in shown.data["text/plain"]
        assert str(number) in shown.data["text/plain"]


def test_the_page_of_results_is_made_of_the_tables():
    page = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    assert page == markdown(read_results([FOLDER / "results"]))


def test_each_is_in_the_reading_order_with_a_picture():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    places = [page.index(f"({one.path.name})") for one in KEPT]
    assert places == sorted(places)
    for one in KEPT:
        assert f"figures/{one.number}.png" in page
        assert (FOLDER / "figures" / f"{one.number}.png").exists()
