"""Features read on a corpus: against a plain run of each clip, its features taken one by one."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from sae_tiny import made
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.probes import random_weights
from hooked_asr.records import RecordsError
from hooked_asr.sae import SAEError
from hooked_asr.sae.reading import read as read_module
from hooked_asr.sae.reading.read import read_features
from hooked_asr.sae.reading.reading import FeatureReading

SITE, DECODER = "encoder.1.hook_resid_post", "decoder.0.hook_resid_post"
SAMPLES = [16_000, 9_999, 4_801, 12_345, 8_000, 7_777]  # a window of the tiny model is one second
TEXTS = ["ask it", "no", "me her", "it", "her no ask", "no it"]
N_FEATURES, TOP = 12, 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return HookedWhisper.from_pretrained(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, draw, lines = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i, (n, text) in enumerate(zip(SAMPLES, TEXTS, strict=True)):
        sound = draw.normal(0, 0.1, n) * np.sin(np.arange(n) / (20 + 9 * i))
        soundfile.write(folder / f"{i}.wav", sound, 16_000)
        phones = [["ab"[j % 2], j / 10, (j + 1) / 10] for j in range(int(n / 1600))]
        row = {"audio": f"{i}.wav", "text": text, "language": "en", "group": f"g{i // 2}"}
        lines.append(row | {"sex": "mf"[i // 2 % 2], "phones": phones})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "clips.jsonl"


@pytest.fixture(scope="module")
def sae(model):
    return made(model, SITE, N_FEATURES)


@pytest.fixture(scope="module")
def reading(sae, model, manifest):
    return read_features(sae, model, manifest, top=TOP, phones="phones", window=0.1, progress=False)


def by_hand(sae, model, manifest):
    """Each clip's features `[pos feature]` at the frames that hear any of it."""
    kept = []
    for i, n in enumerate(SAMPLES):
        mel = model.to_mel(manifest.parent / f"{i}.wav")
        tokens = torch.tensor([[model.generation_config.decoder_start_token_id]])
        _, cache = model.run_with_cache(mel, tokens, names_filter=SITE)
        n_frames = -(-n // 160)  # a mask that is sampled every 10 ms, from the first sample on
        kept.append(sae.encode(cache[SITE][0])[: -(-n_frames // 2)])
    return kept


def test_activity_is_that_of_plain_runs(reading, sae, model, manifest):
    rows = torch.cat(by_hand(sae, model, manifest))
    assert reading.n_rows == len(rows)
    active = (rows > 0).sum(0)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(reading.density, active / len(rows), atol=2 / len(rows))
    np.testing.assert_allclose(reading.greatest, rows.amax(0), **close)
    np.testing.assert_allclose(reading.mean, rows.sum(0) / active.clamp(min=1), rtol=2e-2)
    assert (reading.histogram.sum(1) == np.round(reading.density * len(rows))).all()


def test_excerpts_are_the_peaks_of_other_clips_first_with_what_is_around(
    reading, sae, model, manifest
):
    clips = by_hand(sae, model, manifest)
    for number, note in reading.features.items():
        peaks = [clip[:, number].max().item() for clip in clips]
        order = [i for i in np.argsort([-one for one in peaks]) if peaks[i] > 0]
        assert [one.clip for one in note.excerpts[: len(order)]] == [f"{i}.wav" for i in order]
        for one in note.excerpts:
            own = clips[int(one.clip[0])][:, number]
            around = own[one.first : one.first + len(one.curve)]
            torch.testing.assert_close(torch.tensor(one.curve), around, rtol=1e-4, atol=1e-4)
            assert one.first == max(0, one.position - 5)
            assert one.first + len(one.curve) == min(len(own), one.position + 6)
            assert one.activation == pytest.approx(own[one.position].item(), abs=1e-4)
        further = note.excerpts[len(order) :]
        places = [(one.clip, one.position) for one in note.excerpts]
        for i, (clip, row) in enumerate(places):
            if note.excerpts[i] in further:
                assert all(abs(row - at) > 5 for where, at in places[:i] if where == clip)


def test_excerpts_say_what_is_heard_at_the_peak(reading):
    seen = 0
    for note in reading.features.values():
        for one in note.excerpts:
            centre = one.position * 0.02 + 0.01
            assert one.seconds == pytest.approx(centre)
            assert one.span == pytest.approx((one.first / 50, (one.first + len(one.curve)) / 50))
            if "phone" in one.under:
                assert one.under["phone"] == "ab"[int(centre * 10 + 1e-9) % 2]
                seen += 1
    assert seen


def test_kinds_are_columns_that_name_classes_and_what_is_aligned(reading):
    assert reading.kinds == ["phone", "sex"]  # language has one value, and text is no label
    assert set(reading.table("sex")["label"]) <= {"m", "f", ""}
    shares = reading.purity("phone").groupby("feature")["mass"].sum()
    np.testing.assert_allclose(shares, 1, rtol=1e-5)
    assert len(reading.to_pandas()) == len(reading.active)
    with pytest.raises(SAEError, match="phone, sex"):
        reading.table("accent")
    with pytest.raises(SAEError, match="was not read"):
        reading.features[N_FEATURES]


def test_memory_features_and_batches_change_no_number(reading, sae, model, manifest):
    again = read_features(
        sae, model, manifest, top=TOP, phones="phones", window=0.1, features=[7, 2], memory=1,
        batch_size=1, progress=False,
    )  # fmt: skip
    assert again.numbers == [2, 7]
    np.testing.assert_allclose(again.greatest, reading.greatest[[2, 7]], rtol=1e-4)
    np.testing.assert_allclose(
        again.associations["phone"].f1, reading.associations["phone"].f1[[2, 7]], atol=0.02
    )


def test_a_reading_is_the_same_from_its_files(sae, model, manifest, reading, tmp_path):
    other = random_weights(model)
    control = read_features(
        made(other, SITE, N_FEATURES), other, manifest, phones="phones", progress=False
    )
    whole = read_features(
        sae, model, manifest, phones="phones", control=control, features=[1, 4], progress=False
    )
    whole.save(tmp_path / "reading")
    back = FeatureReading.load(tmp_path / "reading")
    assert back.to_pandas().equals(whole.to_pandas())
    assert back.features[4] == whole.features[4]
    assert back.purity("sex").equals(whole.purity("sex"))
    assert back.count("phone", 0.1) == whole.count("phone", 0.1)
    assert back.control == whole.control
    found = control.association("phone")
    a = found.names.index("a")
    wanted = found.f1[found.fitted[:, a].argmax(), a]
    assert whole.control.labels["phone"]["a"] == pytest.approx(wanted)
    with pytest.raises(SAEError, match="no reading"):
        FeatureReading.load(tmp_path)


def test_a_reading_that_is_kept_is_made_once(sae, model, manifest, reading, tmp_path, monkeypatch):
    asked = {"top": TOP, "phones": "phones", "window": 0.1, "out": tmp_path, "progress": False}
    made_now = read_features(sae, model, manifest, **asked)
    monkeypatch.setattr(read_module, "pass_corpus", lambda *_: pytest.fail("it was read again"))
    kept = read_features(sae, model, manifest, **asked)
    for one in (made_now, kept):
        np.testing.assert_array_equal(one.density, reading.density)
        assert one.table("phone").equals(reading.table("phone"))
    for other in ({"seed": 1}, {"phones": None}, {"control": reading}):
        with pytest.raises(RecordsError, match=f"{next(iter(other))}"):
            read_features(sae, model, manifest, **asked | other)
    with pytest.raises(RecordsError, match="autoencoder"):
        read_features(made(model, SITE, N_FEATURES, seed=1), model, manifest, **asked)


def test_figures_count_features_and_draw_what_is_heard(reading):
    for kind in reading.kinds:
        drawn = reading.plot(kind).to_dict()["concat"]
        counts = [sum(bar["features"] for bar in one["data"]["values"]) for one in drawn]
        assert counts == [N_FEATURES] * 2
        assert drawn[1]["title"]["text"] == "labels shuffled"
    note = reading.features[reading.active[0]]
    for one, panel in zip(note.excerpts, note.plot().to_dict()["concat"], strict=False):
        bars, boxes, _ = (layer["data"]["values"] for layer in panel["layer"])
        assert [bar["activation"] for bar in bars] == list(one.curve)
        assert bars[-1]["to"] == pytest.approx(one.span[1])
        assert [box["label"] for box in boxes] == [own.label for own in one.aligned["phone"]]
        assert all(one.span[0] <= box["from"] <= box["to"] <= one.span[1] for box in boxes)


def test_in_the_decoder_rows_are_tokens_of_text(model, manifest):
    sae = made(model, DECODER, N_FEATURES)
    reading = read_features(sae, model, manifest, texts="text", top=2, progress=False)
    assert reading.kinds[0] == "token"
    n_prompt = len(model.prompt("en"))
    said = [model.to_tokens(text, language="en")[0, n_prompt:].tolist() for text in TEXTS]
    assert [clip.rows for clip in reading.clips] == [len(one) for one in said]
    for note in reading.features.values():
        for one in note.excerpts:
            clip = int(one.clip[0])
            tokens = [model.tokenizer.decode([token]) for token in said[clip]]
            assert one.under == {"token": tokens[one.position]}
            assert one.tokens == tokens[one.first : one.first + len(one.curve)]
            assert one.seconds is None
    with pytest.raises(SAEError, match="have no times"):
        read_features(sae, model, manifest, phones="phones", progress=False)


def test_words_may_be_those_that_the_model_hears(sae, model, manifest, monkeypatch):
    heads = [[0, 1], [1, 2]]
    monkeypatch.setattr(model.generation_config, "alignment_heads", heads, raising=False)
    reading = read_features(sae, model, manifest, words="heard", labels=[], progress=False)
    assert reading.kinds == ["word"]
    heard = model.generate(manifest.parent / "0.wav", language="en", words=True)[0]
    wanted = [(one.text.strip(), one.start) for one in heard.words]
    assert [(one.label, one.start) for one in reading.alignments["word"]["0.wav"]] == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": [N_FEATURES]}, "0 to 11"),
        ({"window": 0.0}, "window"),
        ({"top": 0}, "top"),
        ({"labels": ["age"]}, "has language, sex"),
        ({"batch_size": 0}, "at least 1 clip"),
        ({"prompt": "what"}, "asked by"),
    ],
)
def test_what_does_not_fit_is_refused(sae, model, manifest, options, said):
    with pytest.raises(SAEError, match=said):
        read_features(sae, model, manifest, **options, progress=False)


def test_clips_that_cannot_be_read_are_skipped_when_asked(sae, model, manifest, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    clips = [tmp_path / "broken.wav", manifest.parent / "0.wav", manifest.parent / "1.wav"]
    with pytest.raises(SAEError, match=re.escape("broken.wav")):
        read_features(sae, model, clips, labels=[], progress=False)
    found = read_features(sae, model, clips, labels=[], skip_errors=True, progress=False)
    assert list(found.failed) == [str(tmp_path / "broken.wav")]
    assert len(found.clips) == 2


def test_the_command_line_prints_and_writes_a_reading(run, sae, checkpoint, manifest, tmp_path):
    sae.save(tmp_path / "sae")
    done = run(
        "sae", "read", tmp_path / "sae", manifest, "-m", checkpoint, "--phones", "phones",
        "--label", "sex", "--top", 3, "--rows", 4, "--out", tmp_path / "reading",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.lines[0].split()[:4] == ["feature", "density", "label", "f1"]
    assert any(line.startswith("phone: ") for line in done.lines)
    read = FeatureReading.load(tmp_path / "reading")
    assert read.settings["top"] == 3
    assert (tmp_path / "reading" / "label-phone.csv").is_file()
    pages = run(
        "sae", "pages", tmp_path / "reading", "-m", checkpoint, "--features", "1,2", "--no-audio",
        "--out", tmp_path / "pages",
    )  # fmt: skip
    assert pages.code == 0, pages.err
    names = sorted(one.name for one in (tmp_path / "pages").rglob("*.html"))
    assert names == ["00001.html", "00002.html", "index.html"]
    assert run("sae", "pages", tmp_path, "-m", checkpoint).code == 2
