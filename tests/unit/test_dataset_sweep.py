"""Sweeps over many pairs against a loop of single sweeps, and manifests that make no sense."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from scipy import stats
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.errors import HookedASRError
from hooked_asr.long_work import WorkError
from hooked_asr.manifests import clips_hash
from hooked_asr.patching import (
    DatasetResult,
    ManifestError,
    Pair,
    PairError,
    SitesError,
    SweepError,
    components,
    heads,
    pair_seed,
    read_pairs,
    sweep,
    sweep_dataset,
)
from hooked_asr.patching.inputs import patching_inputs
from hooked_asr.patching.saving import ResultError
from hooked_asr.processes import Process
from hooked_asr.records import RecordsError

SITES = (heads("decoder.cross_attn"), components("decoder", positions=[0, [1, 2]]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return HookedWhisper.from_pretrained(save_checkpoint(folder, "multilingual"))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Six tones, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("tones")
    for i in range(6):
        time = np.arange(4000 + 1000 * i) / 16_000
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2000 * (i + 1) * time), 16_000)
    (folder / "broken.wav").write_text("nothing")
    return folder


@pytest.fixture(scope="module")
def rows(tones):
    """Pairs that say something of their own, each in one column."""
    paths = [str(tones / f"{i}.wav") for i in range(6)]
    return [
        {"audio": paths[0]},
        {"audio": paths[1], "reference": paths[5]},
        {"audio": paths[2], "text": "ask her"},
        {"audio": paths[3], "metric": "logit_diff:no/it"},
        {"audio": paths[4], "language": "de", "group": "g"},
        {"audio": paths[4], "id": "again", "group": "g", "reference": "silence"},
    ]


def run(model, pairs, sites=SITES, **options):
    return sweep_dataset(model, pairs, sites=sites, progress=False, **options)


@pytest.fixture(scope="module")
def result(model, rows):
    return run(model, rows, seed=5, language="en")


def loop(model, rows, sites, **options):
    """One sweep after the other, written out."""
    results = []
    for row in rows:
        seed = pair_seed(5, row.get("id", row["audio"]))
        inputs = patching_inputs(
            model,
            row["audio"],
            row.get("reference", "noise"),
            row.get("metric", "transcript"),
            row.get("text"),
            seed,
            language=row.get("language", "en"),
        )
        runs = {"clean": inputs.clean, "reference": inputs.reference, "metric": inputs.metric}
        results.append((inputs, sweep(model, **runs, sites=sites, progress=False, **options)))
    return results


# --- The numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_every_pair_has_the_numbers_of_its_sweep(model, rows, result, which):
    ours = result.swept[which]
    for i, (inputs, one) in enumerate(loop(model, rows, SITES[which])):
        assert torch.equal(ours.values[i], one.values.double())
        assert (ours.clean[i], ours.reference[i]) == (one.clean, one.reference)
        assert (ours.axes, ours.sites) == (one.axes, one.sites)
        assert (result.pairs[i].text, result.pairs[i].metric) == (inputs.text, one.metric)
    assert [pair.reference for pair in result.pairs][4:] == ["noise", "silence"]
    assert result.pairs[2].text == "ask her"


def test_operation_and_strength_are_those_of_a_sweep(model, rows):
    for options in ({"operation": "mean"}, {"alpha": 0.25}):
        ours = run(model, rows[:2], SITES[0], seed=5, language="en", **options)
        for i, (_, one) in enumerate(loop(model, rows[:2], SITES[0], **options)):
            assert torch.equal(ours.swept[0].values[i], one.values.double())


def test_single_sites_are_a_grid_of_their_own(model, rows, result):
    single = ["decoder.1.cross_attn.2", "decoder.0.cross_attn.1"]
    ours = run(model, rows[:2], [SITES[1], *single], seed=5, language="en").swept
    assert torch.equal(ours[0].values, result.swept[1].values[:2])
    assert ours[1].values.shape == (2, 1, 2)
    expected = result.swept[0].values[:2, [1, 0], [2, 1]]
    torch.testing.assert_close(ours[1].values[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_without_a_reference_sites_are_zeroed(model, rows):
    ours = run(model, rows[:1], SITES[0], reference=None, language="en")
    inputs = patching_inputs(model, rows[0]["audio"], language="en")
    one = sweep(model, clean=inputs.clean, sites=SITES[0], metric=inputs.metric, progress=False)
    assert torch.equal(ours.swept[0].values[0], one.values.double())
    assert ours.operation == "zero"
    assert "normalized" not in ours.to_pandas()
    assert math.isnan(DatasetResult.load(saved(ours, rows)).swept[0].reference[0])


def saved(result, rows):
    path = f"{rows[0]['audio']}.json"
    result.save(path)
    return path


def test_a_pairs_numbers_do_not_depend_on_the_others(model, rows, result):
    backwards = run(model, rows[3::-2], SITES[0], seed=5, language="en")
    assert torch.equal(backwards.swept[0].values, result.swept[0].values[[3, 1]])
    other = run(model, rows[:1], SITES[0], seed=6, language="en")
    assert not torch.equal(other.swept[0].values[0], result.swept[0].values[0])


# --- The statistics -------------------------------------------------------------------------------


def test_means_and_intervals_are_those_of_the_loop(model, rows, result):
    rows = [row for row in rows if "group" not in row]
    ours = run(model, rows, SITES[0], seed=5, language="en").to_pandas()
    sweeps = [one for _, one in loop(model, rows, SITES[0])]
    for what in ("change", "normalized"):
        numbers = torch.stack([getattr(one, what).double().flatten() for one in sweeps]).numpy()
        np.testing.assert_allclose(ours[what], numbers.mean(0), rtol=1e-3, atol=1e-6)
    values = np.stack([(one.values.double() - one.clean).flatten().numpy() for one in sweeps])
    for site in (0, 3):
        theirs = stats.bootstrap(
            (values[:, site],), np.mean, n_resamples=5000, rng=np.random.default_rng(5)
        ).confidence_interval
        found = ours.loc[site, ["change_low", "change_high"]].astype(float)
        np.testing.assert_allclose(found, [theirs.low, theirs.high], rtol=1e-9)
    assert set(ours["n"]) == set(ours["n_normalized"]) == {4}


def test_groups_are_resampled_together(rows, result):
    grouped = result.to_pandas()
    pairs = [{**vars(pair), "group": None} for pair in result.pairs]
    fields = vars(result) | {"pairs": [type(result.pairs[0])(**pair) for pair in pairs]}
    alone = DatasetResult(**fields).to_pandas()
    np.testing.assert_allclose(grouped["change"], alone["change"])
    assert not np.allclose(grouped["change_low"], alone["change_low"])


def test_tables_tell_every_number_and_the_strongest_first(rows, result):
    table, pairs = result.to_pandas(), result.by_pair()
    n_sites = sum(len(one.sites) for one in result.swept)
    assert (len(table), len(pairs)) == (n_sites, n_sites * len(rows))
    for site, of_site in pairs.groupby("site"):
        (mean,) = table.loc[table["site"] == site, "change"]
        assert mean == pytest.approx(of_site["change"].mean())
    np.testing.assert_array_equal(pairs["change"], pairs["value"] - pairs["clean"])
    share = pairs["change"] / (pairs["reference"] - pairs["clean"])
    np.testing.assert_allclose(pairs["normalized"], share)
    assert list(pairs["id"].unique()) == [pair.id for pair in result.pairs]
    strengths = result.top(7)["change"].abs()
    assert list(strengths) == sorted(table["change"].abs(), reverse=True)[:7]
    heads_of = table[table["sites"] == "decoder.cross_attn"]
    assert list(heads_of["head"]) == list(range(4)) * 2
    assert heads_of["component"].isna().all()


def test_what_is_saved_is_loaded(result, tmp_path):
    result.save(tmp_path / "all.json")
    again = DatasetResult.load(tmp_path / "all.json")
    pd.testing.assert_frame_equal(again.by_pair(), result.by_pair())
    pd.testing.assert_frame_equal(again.to_pandas(), result.to_pandas())
    assert again.pairs == result.pairs
    result.save(tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv")
    np.testing.assert_array_equal(table["change_low"], result.to_pandas()["change_low"])
    for broken in ("[]", "{}", '{"pairs": 1, "swept": []}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ResultError, match="no saved sweep of a dataset"):
            DatasetResult.load(tmp_path / "broken.json")


def test_figures_show_the_means(result):
    panels = result.plot().to_dict()["hconcat"]
    means = result.to_pandas()
    cells = [cell["mean change"] for cell in panels[0]["data"]["values"]]
    assert cells == list(means["change"][: len(cells)])
    drawn = result.plot_top(3).to_dict()
    rows = drawn.get("data", drawn["layer"][0].get("data"))["values"]
    assert [row["name"] for row in rows] == list(result.top(3)["site"])
    assert [row["low"] for row in rows] == list(result.top(3)["change_low"])


# --- Going on, and going wrong --------------------------------------------------------------------


def test_a_run_with_other_settings_is_refused(model, rows, tmp_path):
    options = {"sites": SITES[0], "out": tmp_path, "language": "en"}
    run(model, rows[:2], **options)
    for other, said in [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"metric": "kl"}, 'metric was "transcript", now "kl"'),
        ({"sites": heads(layers=[1])}, r"sites \(hash\) was"),
        ({"sites": SITES}, r'sites was \["decoder.cross_attn"\], now \["decoder.cross_attn", '),
        ({"language": "de"}, "prompt was"),
        ({"alpha": 0.5}, "alpha was 1.0, now 0.5"),
    ]:
        with pytest.raises(RecordsError, match=said):
            run(model, rows[:2], **options | other)
    with pytest.raises(RecordsError, match=r"pairs \(hash\)"):
        run(model, rows[:3], **options)
    with torch.no_grad():
        model.W_U[0, 0] += 1e-3
        with pytest.raises(RecordsError, match=r"weights \(hash\)"):
            run(model, rows[:2], **options)
        model.W_U[0, 0] -= 1e-3


def test_what_is_there_is_not_run_again(model, rows, tmp_path, monkeypatch):
    options = {"sites": SITES[0], "out": tmp_path, "language": "en"}
    whole = run(model, rows[:2], **options)
    monkeypatch.setattr("hooked_asr.patching.dataset.patching_inputs", pytest.fail)
    again = run(model, rows[:2], **options)
    assert torch.equal(again.swept[0].values, whole.swept[0].values)


def test_a_pair_that_cannot_be_run_ends_it_by_name_or_is_left_out(model, rows, tones, tmp_path):
    pairs = [rows[0], {"audio": tones / "broken.wav", "id": "bad"}, rows[1]]
    with pytest.raises(PairError, match=r"pair 'bad' \(.*broken\.wav\): .*read"):
        run(model, pairs, SITES[0], out=tmp_path)
    ours = run(model, pairs, SITES[0], out=tmp_path, skip_errors=True)
    whole = run(model, [rows[0], rows[1]], SITES[0])
    assert torch.equal(ours.swept[0].values, whole.swept[0].values)
    assert list(ours.failed) == ["bad"]
    assert "broken.wav" in ours.failed["bad"]
    with pytest.raises(PairError, match="none of 1 pairs can be run; the first: pair 'bad'"):
        run(model, pairs[1:2], SITES[0], skip_errors=True)


def test_what_fits_no_pair_is_refused_before_any_is_run(model, rows, monkeypatch):
    monkeypatch.setattr("hooked_asr.patching.dataset.patching_inputs", pytest.fail)
    for sites, options, error, said in [
        (heads("decoder.attn", "each"), {}, SweepError, "each decoder position means another"),
        (heads("decoder.attn", [99]), {}, SitesError, "asked for 99"),
        ([], {}, SweepError, "no sites"),
        (["decoder.0.atn"], {}, HookedASRError, "atn"),
        (SITES, {"operation": "swap"}, SweepError, "got 'swap'"),
        (SITES, {"operation": "zero", "alpha": 0.5}, SweepError, "alpha is for 'replace' alone"),
        (SITES, {"operation": "replace", "reference": None}, SweepError, "has none"),
        (SITES, {"process": Process(0, 2)}, WorkError, "share their results in a folder"),
    ]:
        with pytest.raises(error, match=said):
            run(model, rows, sites, **options)


def test_positions_beyond_a_short_clip_are_that_pairs_error(model, rows):
    with pytest.raises(PairError, match=r"pair 'again'.* positions 0 to "):
        run(model, [rows[5] | {"text": "no"}], components("decoder", positions=[9]))


# --- Manifests ------------------------------------------------------------------------------------

CSV = """audio, reference, text, group
0.wav, 1.wav, "ask, her", a
2.wav, pink:5, , b
"""


def test_manifests_are_read_as_rows_are(tones):
    csv, lines = tones / "pairs.csv", tones / "pairs.jsonl"
    csv.write_text("\ufeff" + CSV, encoding="utf-8")
    said = [
        {"audio": "0.wav", "reference": "1.wav", "text": "ask, her", "group": "a"},
        {"audio": "2.wav", "reference": "pink:5", "text": None, "group": "b"},
    ]
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in said))
    pairs = read_pairs(csv)
    assert pairs == read_pairs(lines) == [Pair(**said[i], id=said[i]["audio"]) for i in (0, 1)]
    assert pairs[0].audio_path == tones / "0.wav"
    assert pairs[0].reference_in("noise") == str(tones / "1.wav")
    assert pairs[1].reference_in("noise") == "pink:5"
    assert read_pairs(pairs) == pairs
    assert clips_hash(pairs) == clips_hash(read_pairs(lines)) != clips_hash(pairs[::-1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "p.csv",
            "audio,refrence\n0.wav,1.wav\n",
            "line 1: no column 'refrence'; did you",
        ),
        ("p.csv", "text\nyes\n", "line 1: no column 'audio'"),
        ("p.csv", "audio\n0.wav\n\n9.wav\n", r"line 4: there is no file '.*9\.wav'"),
        ("p.csv", "audio,reference\n0.wav,8.wav\n", r"line 2: there is no file '.*8\.wav'"),
        (
            "p.csv",
            "audio\n0.wav\n1.wav\n0.wav\n",
            r"line 4: the id '0.wav' is there already",
        ),
        ("p.csv", "audio,text\n0.wav,one, two\n", "line 2: more cells than columns"),
        ("p.csv", "audio,text\n,yes\n", "line 2: no audio"),
        ("p.csv", "audio\n", "there are no recordings"),
        ("p.csv", "", "no column 'audio'"),
        ("p.csv", 'audio\n"0.wav\n', "line 1: unexpected end"),
        ("p.jsonl", '{"audio": "0.wav"}\n{"audio":\n', "line 2: no JSON"),
        ("p.jsonl", '{"audio": "0.wav"}\n["1.wav"]\n', "line 2: a line holds one object"),
        ("p.jsonl", '{"audio": "0.wav", "text": 3}\n', "line 1: text is a text; got 3"),
        ("p.txt", "0.wav", r"a manifest is a file \.csv or \.jsonl"),
    ],
)
def test_manifests_that_make_no_sense_are_refused_by_line(tones, name, content, said):
    (tones / name).write_text(content)
    with pytest.raises(ManifestError, match=said):
        read_pairs(tones / name)


def test_rows_that_make_no_sense_are_refused_by_number(tones):
    good = {"audio": str(tones / "0.wav")}
    with pytest.raises(ManifestError, match="row 1: no column 'grup'; did you mean 'group'"):
        read_pairs([good, {**good, "grup": "a"}])
    with pytest.raises(ManifestError, match=r"row 1: the id .* is there already"):
        read_pairs([good, good])
    with pytest.raises(ManifestError, match="there is no manifest"):
        read_pairs(tones / "none.csv")
    (tones / "latin.csv").write_bytes("audio\nß.wav".encode("latin-1"))
    with pytest.raises(ManifestError, match="is not UTF-8"):
        read_pairs(tones / "latin.csv")
