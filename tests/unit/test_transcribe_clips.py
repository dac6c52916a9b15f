"""A corpus transcribed: against the clips decoded one by one, and across a kill."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.interventions import zero
from hooked_asr.monitors import Monitor, MonitorError, transcribe_clips
from hooked_asr.probes import LinearProbe, ProbeError, ProbeOrigin
from hooked_asr.records import RecordsError
from hooked_asr.speech import count_word_errors, normaliser

SITE = "encoder.0.hook_resid_post"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("tiny"), "multilingual")
    return HookedWhisper.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    found = []
    for i, n in enumerate((7_001, 12_000, 16_000, 9_000, 11_000)):
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * draw.normal(size=n), 16_000)
        found.append({"audio": str(path), "id": f"{i}", "kind": "ab"[i % 2], "text": "a word"})
    found[0]["language"] = "de"
    return found


def monitor_of(model, threshold=0.5):
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(1, model.config.encoder.d_model, generator=draw)
    origin = ProbeOrigin.of(model, "mean")
    probe = LinearProbe(weights, torch.zeros(1), ["no", "yes"], "speech", SITE, origin)
    return Monitor(probe, threshold)


def test_each_clip_is_heard_as_by_itself(model, rows):
    monitor = monitor_of(model)
    heard = transcribe_clips(model, rows, [monitor], batch_size=2, **QUIET)
    table = heard.to_pandas().set_index("clip")
    for row in rows:
        language = row.get("language") or model.detect_language(model.to_mel(row["audio"]))[0]
        found = table.loc[row["id"]]
        assert found["heard"] == model.transcribe(row["audio"], language)
        assert found["language"] == language
        alone = monitor.generate(model, row["audio"], language=language)
        assert found["speech score"] == pytest.approx(alone.scores[0].final, abs=1e-5)
        assert found["flagged"] == alone.scores[0].flagged
        assert found["words_kept"] == (0 if found["flagged"] else found["words"])
        counts = count_word_errors("a word", found["heard"], normaliser(language))
        assert (found["errors"], found["said"]) == (counts.errors, counts.said)
        assert found["words"] == counts.hits + counts.substitutions + counts.insertions
        assert found["kind"] == row["kind"]
    assert [one.id for one in heard.with_words()] == [
        name for name, text in table["heard"].items() if text
    ]


def test_what_was_killed_goes_on(model, rows, tmp_path, monkeypatch):
    whole = transcribe_clips(model, rows, batch_size=2, **QUIET).to_pandas()
    plain, calls = HookedWhisper.generate, []

    def dies_at_the_second(self, *args, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *args, **options)

    monkeypatch.setattr(HookedWhisper, "generate", dies_at_the_second)
    again = {"batch_size": 2, "out": tmp_path / "heard", **QUIET}
    with pytest.raises(KeyboardInterrupt):
        transcribe_clips(model, rows, **again)
    assert transcribe_clips(model, rows, **again).to_pandas().equals(whole)
    assert len(calls) == 4  # of three batches the first was kept
    transcribe_clips(model, rows, **again)
    assert len(calls) == 4
    with pytest.raises(RecordsError, match="monitors"):
        transcribe_clips(model, rows, [monitor_of(model)], **again)


def test_qwen2_audio_answers_each_clip(rows, tmp_path):
    model = HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path / "qwen"))
    asked = {"prompt": "Who speaks?", "max_new_tokens": 5}
    heard = transcribe_clips(model, rows[:3], **asked, **QUIET).to_pandas()
    assert len(heard) == 3
    for text, row in zip(heard["heard"], rows, strict=False):
        inputs = model.to_inputs(row["audio"], prompt="Who speaks?")
        assert text == model.generate(**inputs, max_new_tokens=5)[0].text


def test_clips_that_cannot_be_used(model, rows, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    several = [*rows[:2], {"audio": str(bad), "id": "bad"}]
    with pytest.raises(MonitorError, match=r"'bad'"):
        transcribe_clips(model, several, **QUIET)
    heard = transcribe_clips(model, several, skip_errors=True, **QUIET)
    assert [one.clip.id for one in heard.heard] == ["0", "1"]
    assert list(heard.failed) == ["bad"]


def test_what_does_not_fit_is_refused(model, rows, tmp_path):
    with pytest.raises(MonitorError, match="asked by language and task; got prompt"):
        transcribe_clips(model, rows, prompt="Who?", **QUIET)
    with pytest.raises(MonitorError, match="batch_size=0"):
        transcribe_clips(model, rows, batch_size=0, **QUIET)
    qwen = HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path / "qwen"))
    with pytest.raises(MonitorError, match="in no language"):
        transcribe_clips(qwen, rows, language="en", **QUIET)
    with pytest.raises(ProbeError, match="other weights"):
        transcribe_clips(qwen, rows, [monitor_of(model)], **QUIET)


def test_interventions_act_and_monitors_see_it(model, rows, tmp_path):
    gone = [zero("encoder.0.hook_resid_post")]
    first = monitor_of(model)
    second = replace(first, probe=replace(first.probe, site="encoder.1.hook_resid_post"))
    options = {"out": tmp_path, "language": "de", **QUIET}
    found = transcribe_clips(model, rows, [first, second], interventions=gone, **options)
    table = found.to_pandas()
    for text, row in zip(table["heard"], rows, strict=True):
        assert text == model.transcribe(row["audio"], "de", interventions=gone)
    assert set(table["speech at encoder.0.hook_resid_post score"]) == {0.5}
    assert set(table["speech at encoder.1.hook_resid_post score"]) != {0.5}
    with pytest.raises(RecordsError, match="interventions"):
        transcribe_clips(model, rows, [first, second], **options)
