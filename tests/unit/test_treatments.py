"""Recordings under several treatments, each against one plain decoding of one recording."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen

from hooked_asr import HookedWhisper, from_pretrained
from hooked_asr.interventions import zero
from hooked_asr.monitors import Monitor, gate
from hooked_asr.patching import TreatmentError, TreatmentResult, treatments
from hooked_asr.patching.treatments_result import Treated
from hooked_asr.probes import LinearProbe, ProbeOrigin
from hooked_asr.records import RecordsError

SITE = "decoder.0.hook_resid_post"
LIMIT = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return HookedWhisper.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    draw = np.random.default_rng(0)
    for i, n in enumerate((9_000, 12_000, 16_000)):
        soundfile.write(folder / f"{i}.wav", 0.1 * draw.normal(size=n), 16_000)
    rows = ["audio,text,group", "0.wav,one two,a", "1.wav,,a", "2.wav,three,b"]
    (folder / "clips.csv").write_text("\n".join(rows))
    return folder / "clips.csv"


def arms(model):
    weights = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    probe = LinearProbe(
        weights, torch.zeros(1), ["no", "yes"], "loops", SITE, ProbeOrigin(pool="tokens")
    )
    inner = [zero("decoder.1.mlp")]
    return {"as it is": [], "off": inner, "gated": gate(model, Monitor(probe, 0.5), inner)}


def test_each_is_what_one_recording_gives_under_one_treatment(model, clips):
    pytest.importorskip("jiwer")
    found = treatments(
        model, clips, arms(model), max_new_tokens=LIMIT, batch_size=2, progress=False
    )
    for name, hooks in arms(model).items():
        for i, one in enumerate(found.arms[name]):
            (heard,) = model.generate(
                clips.parent / f"{i}.wav", interventions=hooks, max_new_tokens=LIMIT
            )
            assert (one.text, one.n_tokens) == (heard.text, len(heard.tokens))
    assert [one.wer is None for one in found.arms["off"]] == [False, True, False]
    table = found.to_pandas().set_index("arm")
    assert table.loc["as it is", "changed"] == 0
    expected = np.mean(
        [a.text != b.text for a, b in zip(found.arms["off"], found.arms["as it is"], strict=True)]
    )
    assert table.loc["off", "changed"] == pytest.approx(expected)
    assert expected > 0


def test_what_was_killed_goes_on_and_other_treatments_are_told_apart(model, clips, tmp_path):
    given = {"max_new_tokens": LIMIT, "batch_size": 1, "progress": False, "out": tmp_path}
    whole = treatments(model, clips, arms(model), **given)
    (records,) = tmp_path.glob("records-*.jsonl")
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:4]) + lines[4][:10])
    again = treatments(model, clips, arms(model), **given)
    assert (again.arms, again.clips) == (whole.arms, whole.clips)
    assert len(records.read_text().splitlines()) == len(lines)
    with pytest.raises(RecordsError, match="arms"):
        treatments(model, clips, arms(model) | {"off": [zero("decoder.0.mlp")]}, **given)


def test_a_qwen_is_treated_alike(tmp_path, clips):
    model = from_pretrained(save_qwen(tmp_path / "qwen"))
    hooks = {"as it is": [], "off": [zero("decoder.1.mlp")]}
    found = treatments(model, clips, hooks, max_new_tokens=3, batch_size=1, progress=False)
    (prompt,) = model.settled(clips.parent / "1.wav").values()
    inputs = model.to_inputs([clips.parent / "1.wav"], [prompt])
    (heard,) = model.generate(**inputs, interventions=hooks["off"], max_new_tokens=3)
    assert found.arms["off"][1].text == heard.text


def test_shares_and_differences_are_those_counted_by_hand(tmp_path):
    calm = [Treated("a b", 2, False, 0.0), Treated("", 0, False, 1.0), Treated("c", 1, False, None)]
    loops = [
        Treated("a a", 2, True, 0.5),
        Treated("b", 1, False, 2.0),
        Treated("c", 1, False, None),
    ]
    found = TreatmentResult(
        ["x", "y", "z"], ["g", "g", None], ["a b", "b", None], {"as it is": loops, "off": calm}, "m"
    )
    table = found.to_pandas().set_index("arm")
    assert table.loc["as it is", ["wer", "loops", "empty"]].tolist() == pytest.approx(
        [1.25, 1 / 3, 0]
    )
    assert table.loc["off", ["wer", "loops", "empty", "changed"]].tolist() == pytest.approx(
        [0.5, 0, 1 / 3, 2 / 3]
    )
    gaps = found.differences("off", "as it is").set_index("measure")["difference"]
    assert gaps.tolist() == pytest.approx([-0.75, -1 / 3, 1 / 3])
    assert len(found.by_clip()) == 6
    for suffix in (".json", ".csv", ".html"):
        found.save(tmp_path / f"found{suffix}")
    again = TreatmentResult.load(tmp_path / "found.json")
    assert (again.arms, again.groups) == (found.arms, found.groups)
    assert json.loads((tmp_path / "found.json").read_text())["model"] == "m"


def test_what_cannot_be_compared_is_refused(model, clips, tmp_path):
    with pytest.raises(TreatmentError, match="at least one arm"):
        treatments(model, clips, {})
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(TreatmentError, match=r"no\.wav"):
        treatments(model, [tmp_path / "no.wav"], {"as it is": []}, progress=False)
