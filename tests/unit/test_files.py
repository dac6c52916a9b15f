"""A folder of files is there as a whole, or as it was."""

import pytest

from hooked_asr.files import folder_written_aside


def test_new_files_take_the_place_of_old_ones(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("old")
    (folder / "notes").write_text("kept")
    with folder_written_aside(folder) as aside:
        (aside / "weights").write_text("new")
        assert (folder / "weights").read_text() == "old"
    assert (folder / "weights").read_text() == "new"
    assert (folder / "notes").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    folder = tmp_path / "checkpoint"

    def fail():
        with folder_written_aside(folder) as aside:
            (aside / "weights").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert not list(folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
