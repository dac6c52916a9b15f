"""What ends a loop: on the bundled model, and on real speech with a trained whisper-tiny.en."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from looping_clips import looping_clips

from hooked_asr import HookedQwen2Audio, HookedWhisper, load_audio, patching
from hooked_asr.audio import AudioError
from hooked_asr.interventions import replace, zero
from hooked_asr.manifests import Clip
from hooked_asr.nano import bundle
from hooked_asr.patching import RepetitionError, RepetitionResult
from hooked_asr.patching.loops import RepeatedText
from hooked_asr.patching.repetition_result import LoopingClip, Outcome, TriedSites
from hooked_asr.patching.result import ResultError
from hooked_asr.records import RecordsError

CHANT = bundle.clip("chant").path
SITES = [
    patching.components("decoder", ("cross_attn", "mlp")),
    patching.heads("decoder.cross_attn"),
]


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def hiss_then_day():
    """Faint noise, and the last word of a sentence: "day" is heard as "Du, du, du, du."."""
    hiss, likely = (load_audio(bundle.clip(name).path) for name in ("hiss", "likely"))
    return torch.cat([hiss[: int(0.8 * len(hiss))], likely[int(0.8 * len(likely)) :]])


@pytest.fixture(scope="module")
def heard(model, hiss_then_day):
    return patching.hear_clips(model, [CHANT, bundle.clip("english").path, hiss_then_day])


@pytest.fixture(scope="module")
def result(model, heard):
    return patching.repetition(model, heard, sites=SITES, progress=False)


# --- Loops found ----------------------------------------------------------------------------------


def test_loops_are_told_with_unit_and_count(heard):
    assert [clip.name for clip in heard] == ["chant.flac", "english.flac", "recording 2"]
    assert [clip.loop for clip in heard] == [RepeatedText("no", 8), None, RepeatedText("du", 4)]


def test_what_is_said_as_often_is_no_loop(model):
    (chant,) = patching.hear_clips(model, [CHANT], said=[bundle.clip("chant").text])
    assert chant.loop is None
    (stutter,) = patching.hear_clips(model, [CHANT], said=["No, no."])
    assert stutter.loop == RepeatedText("no", 8)
    (patient,) = patching.hear_clips(model, [CHANT], min_repeats=9)
    assert patient.loop is None


# --- What becomes of them -------------------------------------------------------------------------


def test_each_row_is_what_the_model_says_with_the_site_off(model, result, hiss_then_day):
    rows = result.by_clip().set_index(["site", "clip"])
    for site in ("decoder.1.cross_attn", "decoder.0.cross_attn.5", "decoder.2.mlp"):
        for name, audio in (("chant.flac", CHANT), ("recording 2", hiss_then_day)):
            row = rows.loc[(site, name)]
            (expected,) = model.generate(audio, interventions=[zero(site)])
            assert (row["text"], row["language"]) == (expected.text, expected.language)


def test_a_site_mends_what_loops_no_more_and_says_something(result):
    table = result.to_pandas().set_index("site")
    assert table["of"].unique().tolist() == [2]
    # Nothing ends a chant that is truly chanted; the loop on "day" goes with what hears it.
    assert table.loc["decoder.1.cross_attn", "mended"] == 1
    assert table.loc["decoder.1.cross_attn", "example"] == "Danke fürs Zuschauen."
    assert table.loc["decoder.0.mlp", "mended"] == 0
    rows = result.by_clip()
    assert not rows[rows["clip"] == "chant.flac"]["mended"].any()
    still = rows[rows["text"].str.contains("[Dd]u, du, du")]
    assert len(still)
    assert not still["mended"].any()


def test_the_table_is_ranked_and_the_heatmaps_hold_its_numbers(result):
    table = result.to_pandas()
    assert table["mended"].is_monotonic_decreasing
    components, heads = result.tried
    assert components.mended.shape == (4, 2)
    assert heads.mended.shape == (4, 6)
    assert int(heads.mended.sum() + components.mended.sum()) == table["mended"].sum()
    assert [one.name for one in result.tried] == ["decoder", "decoder.cross_attn"]
    assert result.left_out == {"english.flac": bundle.clip("english").text}
    assert "wer" not in table


def test_what_was_said_gives_word_errors(model, hiss_then_day):
    pytest.importorskip("jiwer")
    clips = patching.hear_clips(model, [hiss_then_day], said=["Danke fürs Zuschauen."])
    found = patching.repetition(
        model, clips, sites=[patching.components("decoder", "cross_attn")], progress=False
    )
    table = found.to_pandas().set_index("site")
    assert table.loc["decoder.1.cross_attn", "wer"] == 0
    assert table["wer"].dropna().is_monotonic_increasing


def test_patched_from_silence_it_hears_nothing_to_repeat(model, hiss_then_day):
    clips = patching.hear_clips(model, [CHANT])
    found = patching.repetition(
        model,
        clips,
        sites=[patching.components("decoder", "cross_attn")],
        reference="silence",
        progress=False,
    )
    assert found.operation == "replace"
    (clip,) = clips
    quiet = torch.full_like(load_audio(CHANT), 1e-9)
    tokens = torch.tensor([[*model.prompt(clip.language), *clip.tokens]])
    _, cache = model.run_with_cache(model.to_mel(quiet), tokens)
    for row in found.by_clip().itertuples():
        (expected,) = model.generate(
            CHANT,
            interventions=[replace(row.site, cache)],
            max_new_tokens=len(clip.tokens),
        )
        assert row.text == expected.text


def test_a_reference_is_of_one_window(model, heard):
    longer = dataclasses.replace(heard[0], audio=torch.ones(7 * 16_000) / 10)
    with pytest.raises(AudioError, match="window is 6 s"):
        patching.repetition(model, [longer], sites=SITES, reference="noise", progress=False)


# --- Going on, and counting together --------------------------------------------------------------


def test_what_was_killed_goes_on_where_it_was(model, tmp_path, monkeypatch):
    clips = [
        Clip("chant.flac", id="a", text="No.", folder=CHANT.parent),
        Clip("chant.flac", id="b", folder=CHANT.parent),
    ]
    sites = [patching.components("decoder", "cross_attn")]
    heard = patching.hear_clips(model, clips, out=tmp_path / "heard")
    assert [(one.name, one.said) for one in heard] == [("a", "No."), ("b", None)]
    given = {"sites": sites, "progress": False, "out": tmp_path / "tried"}
    result = patching.repetition(model, heard, **given)
    assert result.tried == patching.repetition(model, heard, sites=sites, progress=False).tried
    for name in ("heard", "tried"):
        (records,) = (tmp_path / name).glob("records-*.jsonl")
        lines = records.read_text().splitlines(keepends=True)
        records.write_text("".join(lines[:2]) + lines[2][:9])
    n_decoded = []
    for name in ("generate", "generate_rows"):
        plain = getattr(HookedWhisper, name)
        monkeypatch.setattr(
            HookedWhisper, name, lambda *a, f=plain, **o: (n_decoded.append(1), f(*a, **o))[1]
        )
    again = patching.hear_clips(model, clips, out=tmp_path / "heard")
    assert [one.loop for one in again] == [one.loop for one in heard]
    assert patching.repetition(model, again, **given).tried == result.tried
    assert len(n_decoded) == 2
    with pytest.raises(RecordsError, match="min_repeats"):
        patching.hear_clips(model, clips, out=tmp_path / "heard", min_repeats=4)
    with pytest.raises(RecordsError, match="reference"):
        patching.repetition(model, heard, reference="silence", **given)


def test_a_cover_takes_what_adds_most_to_what_was_taken():
    def outcomes(mends):
        return [Outcome("", "en", one == "x", True) for one in mends]

    mends = {
        "decoder.0.cross_attn": "xx.x.",
        "decoder.1.cross_attn": "xxx..",
        "decoder.0.mlp": "xxxxx",
    }
    clips = [LoopingClip(name, "", "en", "no", 9) for name in "abcde"]
    tried = TriedSites(
        "decoder", {"site": [0, 1, 2]}, list(mends), [*map(outcomes, mends.values())]
    )
    result = RepetitionResult(clips, [tried], "zero", None, 3, "m")
    table = result.cover("*.cross_attn")
    assert table["site"].tolist() == ["decoder.0.cross_attn", "decoder.1.cross_attn"]
    assert table[["mends", "adds", "together"]].values.tolist() == [[3, 3, 3], [3, 1, 4]]
    assert table["share"].tolist() == [0.6, 0.8]
    assert (table["low"] < table["share"]).all()
    assert result.cover(k=1)["site"].tolist() == ["decoder.0.mlp"]
    with pytest.raises(ResultError, match="no site"):
        result.cover("encoder.*")


# --- Kept and shown -------------------------------------------------------------------------------


def test_a_result_is_saved_and_read_again(result, tmp_path):
    for suffix in (".json", ".csv", ".html", ".png"):
        result.save(tmp_path / f"loops{suffix}")
        assert (tmp_path / f"loops{suffix}").stat().st_size > 1000
    again = RepetitionResult.load(tmp_path / "loops.json")
    assert (again.clips, again.tried) == (result.clips, result.tried)
    assert again.left_out == result.left_out
    written = pd.read_csv(tmp_path / "loops.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(written, result.to_pandas(), check_dtype=False)
    with pytest.raises(ResultError, match=r"is saved as \.json"):
        result.save(tmp_path / "loops.txt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no saved repetition"):
        RepetitionResult.load(tmp_path / "other.json")


# --- The command line -----------------------------------------------------------------------------


def test_the_command_prints_loops_and_sites_and_writes_them_down(run, tmp_path):
    done = run(
        *("repetition", CHANT, bundle.clip("english").path, "-m", "whisper-nano"),
        *("--out", tmp_path, "--sites", "decoder.cross_attn", "--top", "3"),
        *("--operation", "replace", "--reference", "silence"),
    )
    assert done.code == 0
    assert done.lines[1].split()[:3] == ["chant.flac", "'no'", "8"]
    assert done.lines[2].startswith("left out, no loop: english.flac: My daughter")
    start = next(i for i, line in enumerate(done.lines) if line.startswith("site"))
    assert all(" of 1" in line for line in done.lines[start + 1 : start + 4])
    stem = "repetition-replace-silence"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{stem}{suffix}" for suffix in (".json", ".csv", ".html", ".png")
    }
    assert json.loads((tmp_path / f"{stem}.json").read_text())["reference"] == "silence"


def test_the_command_explains_itself(run):
    done = run("repetition", "--help")
    assert done.code == 0
    assert "--reference-text" in done.out


def test_where_nothing_loops_there_is_nothing_to_mend(run, tmp_path):
    done = run("repetition", bundle.clip("english").path, "-m", "whisper-nano", "--out", tmp_path)
    assert done.code == 0
    assert "none of 1 recordings loops" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--operation", "mean"], "operations are 'zero' and 'replace'; got 'mean'"),
        (["--operation", "zero", "--reference", "noise"], "to zero takes no reference"),
        (["--sites", "decoder.mpl"], "has no part 'mpl'"),
        (["--sites", "decoder.mlp@each"], "ask for sites at all positions"),
        (["--reference-text", "a", "--reference-text", "b"], "1 recordings take as many texts"),
        (["--reference", "nois"], "'nois' does not exist"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_words(run, tmp_path, options, message):
    done = run("repetition", CHANT, "-m", "whisper-nano", "--out", tmp_path, *options)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_model_that_decodes_no_rows_is_told(model, heard):
    with pytest.raises(RepetitionError, match="give a Whisper"):
        patching.hear_clips(object.__new__(HookedQwen2Audio), [CHANT])
    with pytest.raises(RepetitionError, match="none of the 1 recordings loops"):
        patching.repetition(model, [heard[1]])


# --- Real loops -----------------------------------------------------------------------------------

# All that is asked for is whether it loops, so that the beginning of each loop will do.
ENOUGH = 40


@pytest.mark.long
def test_single_heads_end_the_loops_of_a_trained_model(refit, shared):
    model = HookedWhisper.from_pretrained(refit, dtype=torch.float32)
    audio = looping_clips(shared)
    clips = patching.hear_clips(model, list(audio.values()), max_new_tokens=ENOUGH)
    assert len([clip for clip in clips if clip.loop]) == len(audio) == 5
    result = patching.repetition(
        model,
        clips,
        sites=[patching.components("decoder", "attn"), patching.heads("decoder.attn")],
        max_new_tokens=ENOUGH,
        progress=False,
    )
    table = result.to_pandas().set_index("site")
    assert table["mended"].max() >= 4
    assert {"decoder.3.attn", "decoder.2.attn.5"} <= set(table[table["mended"] >= 4].index)
    # What was hidden by the loop: "Mend the coat before you go out", it is, and was heard.
    whole = result.by_clip().set_index(["site", "clip"]).loc[("decoder.2.attn.5", "recording 0")]
    assert whole["text"].endswith("the coat before you go out.")
