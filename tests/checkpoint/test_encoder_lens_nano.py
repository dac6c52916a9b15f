"""The encoder lens on trained checkpoints: Hugging Face's, decoded from its own hidden states."""

import jiwer
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from hooked_asr import HookedWhisper
from hooked_asr.audio import AudioError
from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.nano import bundle
from hooked_asr.speech import normaliser
from hooked_asr.weights.checkpoint import BUNDLED

CLIPS = [bundle.clip(name) for name in ("english", "german", "chant")]


def loaded(folder):
    hf = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    return hf, HookedWhisper.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def models():
    return loaded(BUNDLED["whisper-nano"])


@pytest.fixture(scope="module")
def lens(models):
    _, model = models
    return encoder_lens(model, [clip.path for clip in CLIPS], said=[clip.text for clip in CLIPS])


@torch.no_grad()
def texts_of(hf, model, mel, language=None, **options):
    """What the reference says from each of its encoder's hidden states; the last is normed."""
    *streams, last = hf.model.encoder(mel, output_hidden_states=True).hidden_states
    outputs = [*map(hf.model.encoder.layer_norm, streams), last]
    asked = {"language": language, "task": "transcribe"} if language else {}
    return [
        model.tokenizer.decode(
            hf.generate(encoder_outputs=BaseModelOutput(output), **asked, **options)[0],
            skip_special_tokens=True,
        ).strip()
        for output in outputs
    ]


def test_each_layer_is_the_reference_decoded_from_its_hidden_state(models, lens):
    hf, model = models
    for clip, bundled in zip(lens.clips, CLIPS, strict=True):
        expected = texts_of(hf, model, model.to_mel(bundled.path), bundled.language)
        assert [one.text for one in clip.layers] == expected
        assert len(set(expected)) > 2
        assert expected[-1] == model.transcribe(bundled.path)


def test_error_rates_are_jiwers_of_texts_made_comparable(models, lens):
    normalise = normaliser("en", models[1].tokenizer)
    english = lens.clips[0]
    said = normalise(CLIPS[0].text)
    for one in english.layers:
        assert one.wer == pytest.approx(jiwer.wer(said, normalise(one.text)))
        assert one.cer == pytest.approx(jiwer.cer(said, normalise(one.text)))
    assert english.layers[-1].wer == 0
    assert english.layers[0].wer > 0.5
    assert {clip.against for clip in lens.clips} == {"said"}


def test_without_a_text_the_last_layer_is_the_measure(models, lens):
    _, model = models
    (clip,) = encoder_lens(model, CLIPS[0].path, layers=[0]).clips
    assert (clip.against, clip.reference) == ("last layer", lens.clips[0].layers[-1].text)
    assert [one.wer for one in clip.layers] == [lens.clips[0].layers[1].wer, 0]


def test_a_chant_loops_only_where_it_is_not_what_was_said(models, lens):
    _, model = models
    chant = CLIPS[2]
    (clip,) = encoder_lens(model, chant.path, layers=[]).clips
    assert clip.layers[-1].loop.count == 8
    assert lens.clips[2].layers[-1].loop is None


def test_no_words_are_an_empty_transcript(models):
    _, model = models
    mute = [model.to_single_token(mark) for mark in (".", ",")]
    only_marks = torch.full((model.config.d_vocab,), -1e9)
    only_marks[mute] = 0
    with model.hooks([("unembed.hook_out", lambda logits, hook: logits + only_marks)]):
        (clip,) = encoder_lens(model, CLIPS[0].path, max_new_tokens=4).clips
    assert all(one.text and one.empty for one in clip.layers)


def test_a_clip_is_of_one_window(models):
    with pytest.raises(AudioError, match="window is 6 s"):
        encoder_lens(models[1], torch.ones(7 * 16_000) / 10)


@pytest.mark.long
def test_real_speech_by_whisper_tiny(shared, refit):
    hf, model = loaded(refit)
    path = shared / "audio" / "speech_en" / "jfk.flac"
    (clip,) = encoder_lens(model, path, max_new_tokens=24).clips
    assert [one.text for one in clip.layers] == texts_of(
        hf, model, model.to_mel(path), max_new_tokens=24
    )
    assert [one.loop is not None for one in clip.layers] == [True] * 4 + [False]
