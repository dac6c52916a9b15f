"""The paper's two curves on trained checkpoints: candidates sound and mean ever more alike."""

import pytest
import torch

from hooked_asr import HookedWhisper
from hooked_asr.lenses import candidate_similarity, logit_lens
from hooked_asr.nano import bundle

CLIPS = [bundle.clip(name) for name in ("english", "scottish", "spanish", "german", "likely")]


def similar(model, inputs, **options):
    lens = logit_lens(model, inputs, progress=False)
    return candidate_similarity(model, lens, progress=False, **options)


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def found(model):
    """Each clip with its transcript, one by one: they are of several lengths."""
    return [
        similar(model, (model.to_mel(clip.path), model.to_tokens(clip.text, clip.language)))
        for clip in CLIPS
    ]


def pooled(found, name, include_final):
    """The mean over the pairs of all clips, layer by layer."""
    tables = [one.by_layer(include_final) for one in found]
    pairs = sum(table[f"{name}_pairs"] for table in tables)
    return (sum(table[name] * table[f"{name}_pairs"] for table in tables) / pairs).tolist()


@pytest.mark.parametrize("include_final", [True, False])
def test_candidates_sound_and_mean_more_alike_layer_by_layer(found, include_final):
    per = pooled(found, "per", include_final)
    cosine = pooled(found, "cosine", include_final)
    assert per[-1] < per[0] - 0.1
    assert cosine[-1] > cosine[0] + 0.05


def test_each_clip_is_read_in_the_language_of_its_prompt(found):
    assert [one.languages for one in found] == [[clip.language] for clip in CLIPS]
    (spanish,) = (one for one in found if one.languages == ["es"])
    assert spanish.phonemes["es"]["Mi"] == ["m", "i"]


def test_what_is_settled_is_alike(found):
    """Where the last layer's likeliest token is a word, it is the final one."""
    for one in found:
        words = one.words[-1, ..., 0]
        assert words.any()
        assert not one.per[-1, ..., 0][words].any()
        torch.testing.assert_close(
            one.cosine[-1, ..., 0], torch.ones_like(one.cosine[-1, ..., 0]), rtol=0, atol=1e-5
        )


def test_a_prompt_alone_over_noise(model):
    """Of the prompt's positions only the last may be followed by a word."""
    inputs = model.to_inputs(bundle.clip("hiss").path, language="en")
    found = similar(model, inputs)
    table = found.by_layer()
    assert not found.words[:, :, :-1].any()
    assert (table.per_pairs <= 5).all()
    assert len(found.to_pandas()) == found.per.numel()


def test_real_speech_by_whisper_tiny(shared, refit):
    model = HookedWhisper.from_pretrained(refit, dtype=torch.float32)
    mel = model.to_mel(shared / "audio" / "speech_en" / "jfk.flac")
    text = model.transcribe(shared / "audio" / "speech_en" / "jfk.flac")
    found = similar(model, (mel, model.to_tokens(text)))
    assert found.languages == ["en"]
    for include_final in (True, False):
        table = found.by_layer(include_final)
        assert table.per.iloc[-1] < table.per.iloc[0]
        assert table.cosine.iloc[-1] > table.cosine.iloc[0]
