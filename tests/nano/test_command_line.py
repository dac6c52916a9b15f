"""`hooked-asr nano`: from nothing to a checkpoint, stopped and gone on with."""

import json
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import soundfile
import torch

from hooked_asr import HookedWhisper
from hooked_asr.nano import bundle, corpus
from hooked_asr.nano.recipe import Phase, Recipe

pytest.importorskip("espeakng_loader")
SMALL = partial(
    Recipe,
    clips_per_shard=6,
    d_model=32,
    n_layers=1,
    n_heads=2,
    text_vocabulary=300,
    phases=(Phase(3, 6),),
    batch=2,
)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # By its full name: in its package the name stands for the sub-command.
    monkeypatch.setattr(import_module("hooked_asr.cli.nano"), "Recipe", SMALL)
    monkeypatch.setattr(corpus, "Recipe", SMALL)  # a corpus reads its recipe back


def test_from_nothing_to_a_checkpoint(run, tmp_path):
    spoken = run("nano", "corpus", "--shards", 1, "--workers", 1)
    assert spoken.code == 0
    assert "6 clips" in spoken.out
    assert run("nano", "train", "--stop-after", 2).code == 0
    half = HookedWhisper.from_pretrained(tmp_path / "whisper-nano" / "checkpoint")
    assert run("nano", "train").code == 0
    whole = HookedWhisper.from_pretrained(tmp_path / "whisper-nano" / "checkpoint")
    assert whole.dtype == torch.float16
    assert not torch.equal(half.W_E, whole.W_E)
    record = json.loads((tmp_path / "whisper-nano" / "checkpoint" / "training.json").read_text())
    assert record["recipe"]["d_model"] == 32


def test_the_bundled_clips_can_be_spoken_again(run, tmp_path):
    assert run("nano", "clips", "--out", tmp_path / "audio").code == 0
    for clip in bundle.clips():
        made, _ = soundfile.read(tmp_path / "audio" / clip.path.name)
        kept, _ = soundfile.read(clip.path)
        assert np.array_equal(made, kept), clip.name
    times = clip.path.with_name("clips.json")
    assert (tmp_path / "audio" / "clips.json").read_bytes() == times.read_bytes()


def test_training_without_a_corpus_says_what_to_run(run):
    answer = run("nano", "train")
    assert answer.code == 2
    assert "run hooked-asr nano corpus" in answer.err


def test_an_evaluation_needs_the_record_of_the_training(run, tmp_path):
    answer = run("nano", "evaluate", "--model", tmp_path)
    assert answer.code == 2
    assert "no config.json" in answer.err
