"""Recordings by folder, list and manifest."""

import pytest

from hooked_asr.manifests import Clip, ManifestError, clips_hash, read_clips, split_groups


@pytest.fixture
def folder(tmp_path):
    for name in ("b.wav", "a.FLAC", "deep/c.mp3", ".hidden/d.wav", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return tmp_path


def test_a_folders_sounds_in_order(folder):
    clips = read_clips(folder)
    assert [clip.id for clip in clips] == ["a.FLAC", "b.wav", "deep/c.mp3"]
    assert [clip.audio_path for clip in clips] == [folder / clip.id for clip in clips]


def test_unknown_columns_are_labels(folder):
    (folder / "m.csv").write_text("audio,group,sex,age\nb.wav,ann,f,31\na.FLAC,,m,\n")
    one, other = read_clips(folder / "m.csv")
    assert one == Clip("b.wav", id="b.wav", group="ann", labels={"sex": "f", "age": "31"})
    assert (other.group, other.labels) == (None, {"sex": "m"})
    (folder / "m.jsonl").write_text(
        '{"audio": "b.wav", "group": "ann", "sex": "f", "age": "31"}\n'
        '{"audio": "a.FLAC", "sex": "m"}\n'
    )
    assert read_clips(folder / "m.jsonl") == [one, other]
    assert clips_hash([one, other]) != clips_hash([other, one])


def test_lists_of_paths_and_of_rows(folder):
    path = folder / "b.wav"
    (alone,) = read_clips(path)
    assert alone == read_clips([path])[0] == read_clips([{"audio": path}])[0]
    assert read_clips([alone]) == [alone]
    assert read_clips([{"audio": path, "pitch": 3.5}])[0].labels == {"pitch": 3.5}


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        ([], "there are no recordings"),
        (["b.wav", "b.wav"], r"row 1: the id 'b.wav' is there already \(row 0\)"),
        (["none.wav"], "row 0: there is no file 'none.wav'"),
        ([{"sound": "b.wav"}], "row 0: no column 'audio'"),
        ([{"audio": "b.wav", "text": 3}], "row 0: text is a text; got 3"),
        ([{"audio": ""}], "row 0: no audio"),
        ("notes.txt", r"a manifest is a file \.csv or \.jsonl; got 'notes.txt'"),
        ("empty", "no sound files in 'empty'"),
    ],
)
def test_what_is_no_list_of_recordings(folder, monkeypatch, clips, says):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ManifestError, match=says):
        read_clips(clips)


def test_parts_share_no_group():
    clips = [Clip(f"{i}.wav", str(i), group=f"speaker {i % 5}") for i in range(20)]
    first, second = split_groups(clips, 0.4, seed=3)
    assert sorted([*first, *second], key=clips.index) == clips
    assert {one.group for one in first}.isdisjoint(one.group for one in second)
    assert len({one.group for one in first}) == 2
    assert split_groups(clips, 0.4, seed=3) == (first, second)
    alone = [Clip("a.wav", "a"), Clip("b.wav", "b")]
    assert len(split_groups(alone)[0]) == 1
    with pytest.raises(ManifestError, match="1 groups cannot be split"):
        split_groups(clips[::5])
