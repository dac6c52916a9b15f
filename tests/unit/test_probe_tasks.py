"""Tasks for probes: how rows are chosen and labelled, and that what is planted is found."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.features import FeatureStore, harvest
from hooked_asr.manifests import read_clips
from hooked_asr.probes import (
    ProbeError,
    confidence_features,
    fit_probes,
    fit_stored,
    log_mel_features,
    random_weights,
)
from hooked_asr.probes.tasks import TASKS, probe_task
from hooked_asr.probes.tasks_hallucination import Transcribed, matched, transcribed
from hooked_asr.speech import wer

QUICK = {"progress": False, "folds": 3, "n_permutations": 2, "n_resamples": 20, "seed": 1}
WORDS = {"numbers": ["One.", "two", "three"], "beasts": ["cat", "Dog!", "owl"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return HookedWhisper.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tones of two pitches, as of two sexes; every third has no accent."""
    folder = tmp_path_factory.mktemp("clips")
    draw = np.random.default_rng(0)
    said = [word for words in WORDS.values() for word in words]
    rows = []
    for i in range(24):
        pitch = (120, 260)[i % 2]
        moments = np.arange(int(draw.integers(6_000, 16_000))) / 16_000
        sound = 0.3 * np.sin(2 * np.pi * pitch * moments) + 0.02 * draw.normal(size=len(moments))
        soundfile.write(folder / f"{i}.wav", sound, 16_000)
        row = {"audio": f"{i}.wav", "sex": ("m", "f")[i % 2], "group": f"speaker {i // 4}"}
        row |= {"text": said[i % 6], "room": ("hall", "cell")[i // 2 % 2]}
        rows.append(row | ({} if i % 3 else {"accent": ("north", "south")[i // 3 % 2]}))
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_task_is_its_harvest_and_fit_written_out(model, manifest, tmp_path):
    found = probe_task("speaker_sex", model, manifest, out=tmp_path / "task", **QUICK)
    sites = [f"encoder.{i}.hook_resid_post" for i in range(2)]
    store = harvest(model, manifest, sites, pool="mean", out=tmp_path / "own", progress=False)
    untrained = random_weights(model, 1)
    random = harvest(untrained, manifest, sites, out=tmp_path / "random", progress=False)
    clips = read_clips(manifest)
    baselines = {"log-mel": log_mel_features(model, clips, progress=False)}
    baselines["random weights"] = random.features()
    expected = fit_stored(store, "sex", baselines=baselines, **QUICK)
    assert found.result.scores == expected.scores
    assert found.result.baselines == expected.baselines
    assert found.result.name == "speaker_sex"
    assert found.result.probe().origin == expected.probe().origin
    assert found.result.scores[sites[0]]["accuracy"].value > 0.9  # pitch is plain to hear
    assert FeatureStore.open(tmp_path / "task" / "features").sites == sites


def test_any_column_is_a_task_and_rows_without_a_label_are_left_out(model, manifest, tmp_path):
    options = {"out": tmp_path, "layers": [1], "baselines": (), **QUICK}
    by_name = probe_task("room", model, manifest, **options)
    by_label = probe_task("noise", model, manifest, label="room", **options)
    assert by_name.result.scores == by_label.result.scores
    assert by_name.result.sites == ["encoder.1.hook_resid_post"]
    accent = probe_task("accent", model, manifest, **options).result
    assert len(accent.rows) == 8
    assert accent.classes == ["north", "south"]
    assert sorted(by_name.result.baselines) == ["majority", "shuffled"]


def test_pairs_of_categories_are_told_of_words_that_were_not_fitted_to(model, manifest, tmp_path):
    words = {**WORDS, "beasts": ["CAT", "dog"], "birds": ["owl"]}
    options = {"out": tmp_path, "layers": [0], "baselines": ("log-mel",), **QUICK}
    pairs = [("numbers", "beasts")]
    found = probe_task("semantic", model, manifest, categories=words, pairs=pairs, **options)
    assert list(found.results) == ["numbers or beasts"]
    assert found.result.classes == ["beasts", "numbers"]
    assert set(found.result.groups) == {"one", "two", "three", "cat", "dog"}
    assert len(found.result.rows) == 20
    assert "birds (4)" in found.about
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(manifest.parent / row["audio"])
        row["category"] = next(name for name in WORDS if row["text"] in WORDS[name])
    by_column = probe_task("semantic", model, rows, **options | {"out": tmp_path / "column"})
    assert list(by_column.results) == ["beasts or numbers"]


# --- Hallucination --------------------------------------------------------------------------------


def test_the_worst_are_paired_with_faithful_ones_of_their_length():
    rates = {0: (0.0, 10), 1: (0.9, 9), 2: (0.4, 12), 3: (0.0, 20), 4: (1.5, 30), 5: (0.0, 12)}
    rates |= {6: (0.1, 20), 7: (0.8, 12)}
    found = [Transcribed(row, *one) for row, one in rates.items()]
    # 4 is as long as none; 1 is nearest to 0 (10), 7 and then 2 to 5 (12): 7 is the worse.
    assert [(a.row, b.row) for a, b in matched(found, 0.99)] == [(1, 0), (7, 5), (6, 3)]
    assert [(a.row, b.row) for a, b in matched(found, 0.25)] == [(1, 0)]
    assert matched([Transcribed(0, 0.5, 3)], 0.5) == []


@pytest.mark.usefixtures("unchecked")
def test_hallucinations_are_told_at_the_last_token_of_the_models_own_transcript(
    model, manifest, tmp_path
):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(manifest.parent / row["audio"])
    heard = [model.transcribe(row["audio"]) for row in rows]
    assert all(heard)
    for i, (row, text) in enumerate(zip(rows, heard, strict=True)):
        row["text"] = text if i % 2 else f"{text} and more"
    found = probe_task(
        "hallucination",
        model,
        rows,
        out=tmp_path,
        worst=0.5,
        baselines=("random weights", "confidence"),
        **QUICK,
    )
    result = found.result
    assert result.classes == ["faithful", "hallucinated"]
    assert result.sites == [f"decoder.{i}.hook_resid_post" for i in range(2)]
    assert result.labels.count("faithful") == result.labels.count("hallucinated") >= 4
    chosen = transcribed(model, read_clips(rows), found.store)
    for one, row, text in zip(chosen, rows, heard, strict=True):
        assert one.wer == pytest.approx(wer(row["text"], text))
    random = FeatureStore.open(tmp_path / "features of random weights")
    assert [clip.text for clip in random.clips] == heard
    sure = confidence_features(
        model, [row | {"text": t} for row, t in zip(rows, heard, strict=True)]
    )
    beside = {"confidence": sure[found.rows["hallucination"]]}
    again = fit_probes(
        {site: found.store[site][found.rows["hallucination"]] for site in result.sites},
        result.labels,
        groups=result.groups,
        baselines=beside,
        **QUICK,
    )
    assert result.baselines["confidence"] == again.baselines["confidence"]
    own = found.store[result.sites[1]]
    for place, label in zip(found.rows["hallucination"], result.labels, strict=True):
        assert (chosen[place].wer == 0) == (label == "faithful") == bool(place % 2)
        said = model.generate(rows[place]["audio"])[0].tokens
        tokens = torch.tensor([[*model.prompt(), *said]])
        mel = model.to_mel(rows[place]["audio"])
        _, cache = model.run_with_cache(mel, tokens, names_filter=result.sites[1])
        last = cache[result.sites[1]][0, -1]
        torch.testing.assert_close(torch.tensor(own[place]), last, atol=1e-4, rtol=1e-4)
    assert result.probe().origin.pool == "last"


# --- What cannot be asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("colour", {}, "there is no task 'colour'.*speaker_sex.*sex"),
        ("noise", {}, "column 'noise', which is not there.*sex"),
        ("speaker_sex", {"label": "gender"}, "'gender'"),
        ("speaker_sex", {"layers": [2]}, "layers 0 to 1.*got 2"),
        ("speaker_sex", {"layers": []}, "no layers"),
        ("speaker_sex", {"baselines": ["noise"]}, "'log-mel', 'random weights'; got 'noise'"),
        ("speaker_sex", {"baselines": ["confidence"]}, "'random weights'; got 'confidence'"),
        ("hallucination", {"worst": 2.0}, "share of all clips"),
    ],
)
def test_what_there_is_not_is_refused_before_any_work(
    model, manifest, tmp_path, task, options, told
):
    with pytest.raises(ProbeError, match=told):
        probe_task(task, model, manifest, out=tmp_path, **{**QUICK, **options})
    assert not list(tmp_path.iterdir())


def test_what_makes_no_groups_is_refused(model, manifest, tmp_path):
    options = {"out": tmp_path, "layers": [0], "baselines": (), **QUICK}
    with pytest.raises(ProbeError, match="no clip is of the category 'fish'; there are beasts"):
        probe_task("semantic", model, manifest, categories=WORDS | {"fish": ["cod"]}, **options)
    with pytest.raises(ProbeError, match="'cat' is of the categories"):
        probe_task("semantic", model, manifest, categories=WORDS | {"pets": ["cat"]}, **options)
    with pytest.raises(ProbeError, match="0 have no error"):
        probe_task("hallucination", model, manifest, **options | {"out": tmp_path / "decoder"})
    assert set(TASKS) >= {"speaker_sex", "noise", "accent", "speech", "hallucination", "semantic"}
