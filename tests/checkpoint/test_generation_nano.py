"""The bundled checkpoint's transcripts by `generate`, token for token Hugging Face's."""

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from hooked_asr import HookedWhisper
from hooked_asr.audio import load_audio
from hooked_asr.nano import bundle
from hooked_asr.speech import loop_share, token_compression_ratio
from hooked_asr.weights.checkpoint import BUNDLED

NAMES = [clip.name for clip in bundle.clips()]
FALLBACK = {"temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def hf():
    folder = BUNDLED["whisper-nano"]
    return WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@pytest.fixture(scope="module")
def mel(model):
    return model.to_mel([clip.path for clip in bundle.clips()])


def spoken(*names, gap=0.3):
    """Samples of bundled clips one after the other, with a pause (s) between them."""
    pause = torch.zeros(int(gap * 16_000))
    return torch.cat(
        [part for name in names for part in (load_audio(bundle.clip(name).path), pause)]
    )


def long_mel(model, *clips):
    """Log-mel frames of clips of any length, and which of them are real."""
    out = model.feature_extractor(
        [clip.numpy() for clip in clips],
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    return out.input_features, out.attention_mask


def compare(hf, model, mel, *, timestamps=False, mel_mask=None, **options):
    """The same tokens and segments on both sides, drawn from the same state."""
    options = {"task": "transcribe", "temperature": 0.0} | options
    torch.manual_seed(0)
    theirs = hf.generate(
        mel,
        return_timestamps=timestamps or mel.shape[-1] > model.config.n_frames,
        attention_mask=mel_mask,
        return_segments=True,
        **options,
    )["segments"]
    torch.manual_seed(0)
    ours = model.generate(mel, timestamps=timestamps, mel_mask=mel_mask, **options)
    rows = [[token for one in clip for token in one["tokens"].tolist()] for clip in theirs]
    assert [one.tokens for one in ours] == rows
    for one, segments in zip(ours, theirs, strict=True):
        assert [list(s.tokens) for s in one.segments] == [s["tokens"].tolist() for s in segments]
        times = [time for s in one.segments for time in (s.start, s.end)]
        expected = [float(time) for s in segments for time in (s["start"], s["end"])]
        assert times == pytest.approx(expected, abs=1e-9)
    return ours


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_clip_is_transcribed_as_by_hugging_face(hf, model, name, timestamps):
    (out,) = compare(hf, model, model.to_mel(bundle.clip(name).path), timestamps=timestamps)
    (from_file,) = model.generate(bundle.clip(name).path, timestamps=timestamps)
    assert from_file.tokens == out.tokens


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_all_clips_at_once_in_the_languages_they_are_heard_in(hf, model, mel, task, timestamps):
    out = compare(hf, model, mel, timestamps=timestamps, task=task)
    assert [one.language for one in out] == model.detect_language(mel)
    assert {one.language for one in out} == {"en", "es", "de"}


@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_each_clip_in_the_language_it_is_said_to_be_in(hf, model, mel, task):
    languages = [{"en": "english"}.get(clip.language, clip.language) for clip in bundle.clips()]
    out = compare(hf, model, mel, language=languages, task=task)
    assert [one.language for one in out] == [clip.language for clip in bundle.clips()]


@pytest.mark.parametrize("language", ["en", "es", "german"])
def test_any_language_can_be_heard_in_any_clip(hf, model, mel, language):
    compare(hf, model, mel, language=language, timestamps=True)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams_end_where_hugging_faces_do(hf, model, mel, num_beams, timestamps):
    compare(hf, model, mel[:5], timestamps=timestamps, num_beams=num_beams)


def test_what_came_before_is_heeded(hf, model, mel, request):
    prompt = "My mother has a red hat."
    ids = torch.tensor(model.tokenizer.get_prompt_ids(prompt))
    theirs = hf.generate(mel, task="transcribe", language="en", prompt_ids=ids)
    ours = model.generate(mel, language="en", prompt=prompt)
    end = hf.generation_config.eos_token_id
    assert [one.tokens for one in ours] == [
        [token for token in row if token != end] for row in theirs.tolist()
    ]


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_long_clip_is_decoded_as_by_hugging_face(hf, model, conditioned, num_beams):
    mel, _ = long_mel(model, spoken("english", "scottish", "likely", "unlikely", "scottish"))
    assert mel.shape[-1] > 2 * model.config.n_frames
    options = {"condition_on_prev_tokens": conditioned, "num_beams": num_beams}
    (out,) = compare(hf, model, mel, language="en", **options)
    assert len(out.segments) > 2


@pytest.mark.parametrize("conditioned", [False, True])
def test_long_clips_end_at_their_own_time(hf, model, conditioned):
    mel, mask = long_mel(
        model,
        spoken("english", "scottish", "likely", "english"),
        spoken("german", "german"),
        spoken("spanish", "spanish", "spanish", gap=0.6),
        spoken("hiss"),
    )
    options = {"mel_mask": mask, "condition_on_prev_tokens": conditioned}
    out = compare(hf, model, mel, **options)
    lengths = mask.sum(1) / 100
    assert all(
        segment.end <= length + 6
        for one, length in zip(out, lengths, strict=True)
        for segment in one.segments
    )
    assert out[0].segments[-1].start > out[1].segments[-1].start
    compare(hf, model, mel, task="translate", **options)


def test_long_sound_needs_no_frames(model):
    sound = spoken("english", "scottish", "likely")
    mel, _ = long_mel(model, sound)
    (ours,), (same,) = model.generate(sound, language="en"), model.generate(mel, language="en")
    assert ours.tokens == same.tokens


def test_a_chant_compresses_well_enough_to_be_tried_again(hf, model):
    clip = bundle.clip("chant")
    mel = model.to_mel(clip.path)
    (plain,) = compare(hf, model, mel, language="en")
    assert loop_share(plain.tokens) > 0.5
    tokens = [*plain.tokens, hf.generation_config.eos_token_id]
    ratio = token_compression_ratio(tokens, model.config.d_vocab)
    options = FALLBACK | {"compression_ratio_threshold": ratio - 1e-3}
    (again,) = compare(hf, model, mel, language="en", **options)
    assert again.temperature > 0
    options = FALLBACK | {"compression_ratio_threshold": ratio + 1e-3}
    (content,) = compare(hf, model, mel, language="en", **options)
    assert content.tokens == plain.tokens
    assert content.temperature == 0


def test_clips_that_are_hard_to_hear_are_tried_again(hf, model, mel):
    plain = model.generate(mel)
    values = sorted(one.avg_logprob for one in plain)
    options = FALLBACK | {"logprob_threshold": (values[1] + values[2]) / 2}
    out = compare(hf, model, mel, **options)
    drawn = [one.avg_logprob for one, again in zip(plain, out, strict=True) if again.temperature]
    assert sorted(drawn) == values[:2]


def test_a_long_chant_is_tried_again_window_by_window(hf, model):
    mel, _ = long_mel(model, spoken("english", "chant", "chant", "scottish"))
    options = FALLBACK | {"compression_ratio_threshold": 1.2, "logprob_threshold": -0.8}
    compare(hf, model, mel, language="en", **options)
    compare(hf, model, mel, language="en", condition_on_prev_tokens=True, **options)


def test_words_have_times_within_the_clip(model):
    clip = bundle.clip("english")
    if not getattr(model.generation_config, "alignment_heads", None):
        pytest.skip("this checkpoint names no alignment heads")
    (out,) = model.generate(clip.path, words=True)
    assert "".join(word.text for word in out.words).strip() == out.text
    assert len(out.words) == len(out.text.split())
    assert all(0 <= word.start <= word.end <= 3.0 for word in out.words)
