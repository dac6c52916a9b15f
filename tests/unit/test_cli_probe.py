"""`hooked-asr probe`, and `transcribe --monitor`: what they print, write and refuse."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.features import harvest
from hooked_asr.monitors import Monitor
from hooked_asr.probes import LinearProbe, ProbeOrigin, ProbeResult, probe_task

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return HookedWhisper.from_pretrained(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tones of two pitches, three speakers."""
    clips = tmp_path_factory.mktemp("clips")
    lines = ["audio,sex,group"]
    for i in range(12):
        sound = 0.3 * np.sin(2 * np.pi * (120, 260)[i % 2] * np.arange(9_000 + 300 * i) / 16_000)
        soundfile.write(clips / f"{i}.wav", sound, 16_000)
        lines.append(f"{i}.wav,{('m', 'f')[i % 2]},{i // 4}")
    (clips / "clips.csv").write_text("\n".join(lines) + "\n")
    return clips / "clips.csv"


def cells(out, header):
    """A table's rows, by their first cells."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    rows = [line.split() for line in lines[start + 1 :]]
    return {row[0]: row[1:] for row in rows if row and row[0].startswith("encoder")}


def test_a_manifest_is_probed_layer_by_layer(run, folder, model, manifest, tmp_path):
    words = ["probe", manifest, "-m", folder, "--task", "speaker_sex", "--folds", 3]
    words += ["--score", "auc"]
    said = run(*words, "--out", tmp_path)
    assert said.code == 0, said.err
    expected = probe_task(
        "speaker_sex", model, manifest, out=tmp_path / "again", folds=3, progress=False
    ).result
    table = cells(said.out, "speaker_sex: auc")
    assert list(table) == expected.sites
    for site, row in table.items():
        scores = [expected.scores[site]["auc"]]
        scores += [of[site]["auc"] for of in expected.baselines.values()]
        assert [row[0], *row[4:]] == [f"{one.value:.3f}" for one in scores]
    assert ProbeResult.load(tmp_path / "speaker_sex.json").scores == expected.scores
    page = (tmp_path / "speaker_sex.html").read_text()
    assert "random weights" in page
    assert (tmp_path / "speaker_sex.png").read_bytes().startswith(b"\x89PNG")
    best = LinearProbe.load(tmp_path / "speaker_sex.safetensors")
    assert best.site == expected.best("auc")
    torch.testing.assert_close(best.weights, expected.probe(best.site).weights)
    heard = run("transcribe", manifest.parent / "0.wav", "-m", folder, "--format", "json",
                "--monitor", tmp_path / "speaker_sex.safetensors")  # fmt: skip
    (scores,) = json.loads(heard.out)["monitors"]
    assert (scores["monitor"], scores["flagged"]) == ("speaker_sex", True)


def test_a_folder_of_features_is_probed_without_a_model(run, model, manifest, tmp_path):
    harvest(model, manifest, "encoder.0.hook_resid_post", out=tmp_path / "own", progress=False)
    said = run("probe", tmp_path / "own", "--label", "sex", "--folds", 3, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert list(cells(said.out, "sex: accuracy")) == ["encoder.0.hook_resid_post"]
    assert (tmp_path / "out" / "sex.safetensors").exists()
    refused = run("probe", tmp_path / "own", "--label", "sex", "--layers", "0")
    assert refused.code == 2
    assert "--layers is for recordings" in refused.err
    assert "--label" in run("probe", tmp_path / "own").err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "colour"], "there is no task 'colour'"),
        (["--task", "noise"], "column 'noise', which is not there"),
        (["--label", "age"], "'age'"),
        (["--task", "speaker_sex", "--layers", "one"], "got 'one'"),
        (["--task", "speaker_sex", "--layers", "7"], "layers 0 to 1"),
        (["--task", "speaker_sex", "--score", "rank"], "got 'rank'"),
        ([], "--task or --label"),
    ],
)
def test_what_there_is_not_is_refused(run, folder, manifest, tmp_path, words, told):
    said = run("probe", manifest, "-m", folder, "--out", tmp_path / "out", *words)
    assert said.code == 2
    assert told in said.err
    assert not (tmp_path / "out").exists()


# --- transcribe --monitor -------------------------------------------------------------------------


def a_probe(model, site, sign=1.0, name="loops", pool="last"):
    width = 32 if "encoder" in site or isinstance(model, HookedWhisper) else 48
    draw = torch.Generator().manual_seed(0)
    weights = 0.01 * torch.randn(1, width, generator=draw)
    bias, origin = torch.tensor([3.0 * sign]), ProbeOrigin.of(model, pool)
    return LinearProbe(weights, bias, ["no", "yes"], name, site, origin)


def test_suspect_segments_are_flagged_in_text_and_json(run, folder, model, manifest, tmp_path):
    loud, quiet = tmp_path / "loud.safetensors", tmp_path / "quiet.safetensors"
    a_probe(model, "decoder.1.hook_resid_post").save(loud)
    a_probe(model, "encoder.0.hook_resid_post", -1.0, "calm", "mean").save(quiet)
    clip = manifest.parent / "1.wav"
    words = ["transcribe", clip, "-m", folder]
    monitors = ["--monitor", loud, "--monitor", quiet]
    plain = run(*words).out.rstrip()
    expected = Monitor.load(loud, model).generate(model, clip).scores[0]
    assert run(*words, *monitors).out.rstrip() == f"{plain}  [! loops {expected.final:.2f}]"
    assert run(*words, *monitors, "--alarm", 0.999).out.rstrip() == plain
    timed = run(*words, "--timestamps", *monitors).lines
    assert len(timed) == len(run(*words, "--timestamps").lines)
    assert "  [! loops 0.9" in timed[0]
    said = json.loads(run(*words, "--format", "json", *monitors).out)
    before = json.loads(run(*words, "--format", "json").out)
    first, second = said.pop("monitors")
    assert said == before
    assert first["final"] == pytest.approx(expected.final)
    assert first["tokens"] == pytest.approx(expected.tokens)
    assert (second["monitor"], second["flagged"]) == ("calm", False)
    refused = run(*words, "--format", "srt", *monitors)
    assert (refused.code, "no place for what monitors tell" in refused.err) == (2, True)


def test_a_monitor_of_another_model_is_refused(run, folder, manifest, tmp_path):
    qwen_folder = save_qwen2(tmp_path / "qwen")
    qwen = HookedQwen2Audio.from_pretrained(qwen_folder)
    path = tmp_path / "qwen.safetensors"
    a_probe(qwen, "decoder.1.hook_resid_post").save(path)
    clip = manifest.parent / "1.wav"
    said = run("transcribe", clip, "-m", folder, "--monitor", path)
    assert said.code == 2
    assert "was fitted to" in said.err
    assert str(qwen_folder) in said.err
    answer = run("transcribe", clip, "-m", qwen_folder, "--monitor", path, "--format", "json")
    assert json.loads(answer.out)["monitors"][0]["flagged"] is True
    assert "there is no probe" in run("transcribe", clip, "-m", folder, "--monitor", "none").err
