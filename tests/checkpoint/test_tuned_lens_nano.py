"""Tuned lenses of whisper-nano, as it comes (float16): trained on speech, measured on other."""

import random
import shutil
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest

from hooked_asr import HookedWhisper
from hooked_asr.lenses import LensError, TunedLens, encoder_lens, logit_lens, train_tuned_lens
from hooked_asr.nano import bundle
from hooked_asr.nano.clips import plan_training_clip, speak
from hooked_asr.nano.espeak import Espeak
from hooked_asr.nano.recipe import Recipe
from hooked_asr.patching.manifest import ManifestError

LAYERS = ["embed", "0", "1", "2"]
SPEECH = [one for one in bundle.clips() if one.text and one.name != "english_babble"]
ENGLISH, SCOTTISH = bundle.clip("english"), bundle.clip("scottish")


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano")


@pytest.fixture(scope="module")
def spoken():
    """Clips to train on, as samples."""
    rng, espeak = random.Random(3), Espeak(seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        spoken = [speak(espeak, plan_training_clip(rng, Recipe())) for _ in range(72)]
    clips = [clip for clip in spoken if clip.seconds <= 6]
    return [clip.samples.astype(np.float32) / 2**15 for clip in clips]


@pytest.mark.long
def test_a_decoders_tuned_lens_beats_the_logit_lens_on_other_speech(model, spoken):
    lens = train_tuned_lens(model, spoken, steps=60, progress=False)
    other = lens.evaluate(model, [clip.path for clip in SPEECH], progress=False)
    for table in (other, lens.held_out):
        assert table["layer"].tolist() == LAYERS
        assert (table["tuned_lens"] < 0.8 * table["logit_lens"]).all()
    inputs = model.to_inputs(ENGLISH.path, text=ENGLISH.text, language="en")
    asked = {"at": ["resid_pre", "resid_post"], "progress": False}
    plain, tuned = (
        logit_lens(model, inputs, translate=one, **asked).kl.mean((1, 2)) for one in (None, lens)
    )
    assert (tuned[:-1] < plain[:-1]).all()
    assert tuned[-1] == plain[-1] == 0


@pytest.mark.long
def test_an_encoders_tuned_lens_is_understood_better_layer_by_layer(model, spoken):
    lens = train_tuned_lens(model, spoken[:32], stack="encoder", steps=8, progress=False)
    table = lens.evaluate(model, [clip.path for clip in SPEECH], progress=False)
    assert table["layer"].tolist() == LAYERS
    assert (table["tuned_lens"] < 0.6 * table["logit_lens"]).all()
    clips = [ENGLISH, SCOTTISH, bundle.clip("spanish"), bundle.clip("german")]
    plain, tuned = (
        encoder_lens(
            model, [one.path for one in clips], said=[one.text for one in clips], tuned=one
        ).counts()
        for one in (None, lens)
    )
    assert (tuned["wer"] <= plain["wer"]).all()
    assert tuned["wer"][1] < plain["wer"][1] / 2
    assert tuned["wer"].iloc[-1] == plain["wer"].iloc[-1]


def same(one, other):
    return all((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))


def trained(model, audio, **options):
    return train_tuned_lens(model, audio, steps=2, held_out=0.0, progress=False, **options)


@pytest.fixture
def folder(tmp_path):
    for clip in (ENGLISH, SCOTTISH):
        shutil.copy(clip.path, tmp_path)
    return SimpleNamespace(path=tmp_path, files=[ENGLISH.path, SCOTTISH.path])


def test_clips_are_forced_with_the_models_own_transcripts_or_with_given_ones(model, folder):
    def run(path, text, language="en"):
        return dict(model.to_inputs(path, text=text, language=language))

    own = [run(path, model.transcribe(path)) for path in folder.files]
    assert model.detect_language(own[0]["mel"]) == ["en"]
    by_runs = trained(model, own)
    for audio in (folder.path, folder.files):
        assert same(trained(model, audio), by_runs)

    texts = ["My daughter has a belt.", "Seven books."]
    given = trained(model, [run(*one) for one in zip(folder.files, texts, strict=True)])
    assert not same(given, by_runs)
    assert same(trained(model, folder.files, texts=texts), given)
    manifest = folder.path / "said.csv"
    rows = zip(folder.files, texts, strict=True)
    manifest.write_text(
        "audio,text,language\n" + "".join(f"{path.name},{text},en\n" for path, text in rows)
    )
    assert same(trained(model, manifest), given)
    spanish = trained(model, [run(path, None, "es") for path in folder.files])
    assert not same(spanish, given)
    empty = trained(model, folder.files, texts=["", ""], language="spanish")
    assert same(empty, spanish)


def test_transcripts_are_kept_and_not_told_again(model, folder, tmp_path, monkeypatch):
    first = trained(model, folder.files, out=tmp_path / "lens")
    (tmp_path / "lens" / "lens.safetensors").unlink()
    monkeypatch.setattr(model, "generate", None)
    again = trained(model, folder.files, out=tmp_path / "lens")
    assert same(first, again)
    read = TunedLens.load(tmp_path / "lens" / "lens.safetensors", model)
    assert same(first, read)
    assert read.origin.model == model.name


def test_files_that_cannot_be_read_are_named(model, folder):
    whole = ENGLISH.path.read_bytes()
    (folder.path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder.path / "no.wav").write_text("no sound")
    with pytest.raises(LensError, match=r"2 of 4 clips cannot be used: cut\.flac: .*no\.wav: "):
        trained(model, folder.path)
    with pytest.warns(UserWarning, match=r"2 of 4 .*cut\.flac.*They are skipped"):
        lens = trained(model, folder.path, skip_unreadable=True)
    assert same(lens, trained(model, folder.files))
    with pytest.raises(ManifestError, match=r"there is no file 'gone\.wav'"):
        trained(model, ["gone.wav"])
