"""Tutorials run from the command line, and their tables of results."""

import json
import shlex

import nbformat
import numpy as np
import pytest
import soundfile
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from hooked_asr.cli import app
from hooked_asr.manifests import ManifestError
from hooked_asr.reproduce import (
    Results,
    ResultsError,
    TutorialError,
    data_hash,
    notebooks,
    reproduce,
    tutorial,
    tutorials,
)
from hooked_asr.reproduce.results import differences
from hooked_asr.reproduce.tables import by_tutorial, markdown, read_results

PARAMETERS = """\
model_name = "whisper-nano"  # a hub id
manifest = None
out = "reproduced/07"
seed = 0
words = ("a", "b")  # some = words"""
WORK = """\
from pathlib import Path
import altair as alt
from hooked_asr.reproduce import Results
done = Path(out) / "done"
if not done.exists():
    print("working")
done.touch()
if seed == 13:
    raise KeyError("unlucky")"""
FIGURE = """\
alt.Chart(alt.Data(values=[{"x": 1, "y": seed}])).mark_bar().encode(x="x:Q", y="y:Q")"""
LAST = """\
results = Results("07", "Made up", seed=seed)
results.add("seeds", seed, paper="1")
results.save(Path(out) / "results.json")
results"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A tutorial that is quick; the folder for its results."""
    asked = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Made up\n\nText."), asked]
    cells += [new_code_cell(one) for one in (WORK, FIGURE, LAST)]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "07_made_up.ipynb")
    monkeypatch.setattr(notebooks, "_SOURCE", folder)
    monkeypatch.setattr(notebooks, "_PACKAGED", tmp_path / "none")
    return tmp_path / "out"


def test_a_tutorial_is_found_with_its_parameters(made):
    (one,) = tutorials()
    assert (one.number, one.title) == ("07", "Made up")
    assert one.parameters["words"] == ("a", "b")
    assert one.parameters["manifest"] is None
    assert tutorial("7").path == tutorial("07_made_up").path == one.path
    with pytest.raises(TutorialError, match="no tutorial '12'; there are 07_made_up"):
        tutorial("12")


def test_a_run_fills_the_notebook_and_keeps_figures_and_results(made):
    said = []
    names = reproduce("07", out=made, say=said.append, seed=3, words=("c",))
    assert names["words"] == ("c",)
    kept = nbformat.read(made / "07_made_up.ipynb", as_version=4)
    nbformat.validate(kept)
    assert kept.cells[1].source.splitlines()[3:] == ["seed = 3", "words = ('c',)  # some = words"]
    assert kept.cells[2].outputs[0].text == "working\n"
    assert list(kept.cells[3].outputs[0].data) == ["image/png"]
    assert [cell.execution_count for cell in kept.cells[1:]] == [1, 2, 3, 4]
    (figure,) = made.glob("figure*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert any("working" in one for one in said)
    results = Results.load(made / "results.json")
    assert results.numbers[0].value == 3
    command = shlex.split(results.command)
    assert command == ["hooked-asr", "reproduce", "07", "--seed", "3", "--set", "words=('c',)"]


def test_a_run_that_broke_off_goes_on_where_it_was(made):
    with pytest.raises(KeyError, match="unlucky"):
        reproduce("07", out=made, say=lambda text: None, seed=13)
    assert not (made / "results.json").exists()
    said = []
    reproduce("07", out=made, say=said.append)
    assert not any("working" in one for one in said)


def test_a_parameter_that_is_not_there_is_refused_before_any_work(made):
    with pytest.raises(TutorialError, match=r"no parameter 'clips'; it has model_name \('whisper"):
        reproduce("07", out=made, clips=3)
    assert not made.exists()


def test_the_command_line_runs_and_lists(made):
    run = CliRunner().invoke(app, ["reproduce"])
    assert "07_made_up" in run.output
    asked = ["reproduce", "7", "--out", str(made), "--seed", "2", "--set", "words=x"]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 0, run.output
    assert "# Made up" in run.output
    kept = json.loads((made / "results.json").read_text())
    assert kept["command"] == "hooked-asr reproduce 07 --seed 2 --set 'words='\"'\"'x'\"'\"''"
    run = CliRunner().invoke(app, ["reproduce", "7", "--set", "words"])
    assert "NAME=VALUE" in str(run.exception)


# --- Results --------------------------------------------------------------------------------------


def results(**fields):
    made = Results("08", title="Repetition", **fields)
    made.add(
        "mended", np.float64(0.5), unit="%", interval=(0.25, 0.75), n=np.int64(8), paper="76 %"
    )
    made.add("best layer", "2")
    made.note("Chants\n   only.")
    return made


def test_results_read_back_as_written(tmp_path):
    written = results(model="whisper-nano", data="chants", data_hash="ab", seed=4)
    read = Results.load(written.save(tmp_path / "a.json"))
    assert read == written
    assert read.versions["torch"]
    assert read.notes == ["Chants only."]
    assert read.to_pandas().loc["mended"].tolist() == ["76 %", "50.0 % [25.0 %, 75.0 %] (n = 8)"]
    assert "50.0 %" in read._repr_html_()


def test_results_are_refused_where_they_would_mislead(tmp_path):
    made = results()
    with pytest.raises(ResultsError, match="in the table already"):
        made.add("mended", 1)
    with pytest.raises(ResultsError, match="a share from 0 to 1; got 76"):
        made.add("more", 76.0, unit="%")
    with pytest.raises(ResultsError, match=r"kept as \.json"):
        made.save(tmp_path / "a.csv")
    (tmp_path / "b.json").write_text('{"results": 1, "numbers": 3}')
    with pytest.raises(ResultsError, match="holds no results"):
        Results.load(tmp_path / "b.json")
    with pytest.raises(ResultsError, match="there is no file"):
        Results.load(tmp_path / "c.json")
    with pytest.raises(ResultsError, match="nothing at"):
        read_results([tmp_path / "none"])


def test_runs_are_compared(tmp_path):
    results(model="whisper-nano", seed=4).save(tmp_path / "one.json")
    other = results(model="models/tiny", seed=5)
    other.add("of tiny alone", 3)
    other.save(tmp_path / "two.json")
    found = read_results([tmp_path])
    runs = by_tutorial(found)["08"]
    assert list(runs) == ["whisper-nano", "tiny"]
    assert differences(runs) == {"model": ["whisper-nano", "models/tiny"], "seed": ["4", "5"]}
    page = markdown(found)
    assert "| mended | 76 % | 50.0 % [25.0 %, 75.0 %] (n = 8) | 50.0 %" in page
    assert "| of tiny alone |  |  | 3 |" in page
    run = CliRunner().invoke(app, ["results", str(tmp_path)])
    assert "(seed)" in run.output
    run = CliRunner().invoke(app, ["results", str(tmp_path), "--out", str(tmp_path / "r.md")])
    assert (tmp_path / "r.md").read_text() == page


def test_the_hash_of_data_is_that_of_sounds_and_what_is_said_of_them(tmp_path):
    def manifest(name, samples, text="hello"):
        folder = tmp_path / name
        folder.mkdir()
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
        (folder / "manifest.csv").write_text(f"audio,text,sex\n{name}.wav,{text},f\n")
        return folder / "manifest.csv"

    tone = np.sin(np.arange(800) / 9)
    one = data_hash(manifest("one", tone))
    assert data_hash(manifest("two", tone)) == one
    assert data_hash(manifest("three", tone, "hullo")) != one
    assert data_hash(manifest("four", 0.5 * tone)) != one
    with pytest.raises(ManifestError):
        data_hash(tmp_path / "nothing.csv")
