"""A trained checkpoint's transcripts of real speech by `generate`, token for token Hugging Face's.

With HOOKED_ASR_ALL_FILES set, of every English recording there is.
"""

import functools
import os

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from hooked_asr import HookedWhisper, load_audio

SHORT = [
    "speech_en/jfk.flac",
    "speech_en/LJ001-0002.wav",
    "speech_en/1089-134686-0001.wav",
    "speech_en/1221-135766-0002.wav",
    "speech_en/3436-172162-0000.hq.ogg",
    "speech_en/5703-47212-0000.hq.ogg",
    "speech_en/8280-266249-0065.flac",
    "speech_en/no_1000ms.wav",
    "speech_en/yes_1000ms.wav",
    "speech_en/test.wav",
    "speech_en_l2/000010011.WAV",
    "nonspeech/silence_1000ms.wav",
]
EVERY = bool(os.environ.get("HOOKED_ASR_ALL_FILES"))
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
LIMIT = 24  # tokens; enough to tell one transcript from another, and to keep these tests short


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(refit):
    hf = WhisperForConditionalGeneration.from_pretrained(
        refit, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    return hf, HookedWhisper.from_pretrained(refit, dtype=torch.float32)


@pytest.fixture(scope="module")
def mel_of(models, shared):
    return functools.cache(lambda name: models[1].to_mel(shared / "audio" / name))


def generated(hf, mel, **options):
    """Tokens of each clip, by the reference."""
    out = hf.generate(mel, return_segments=True, return_timestamps=False, **options)
    return [[t for one in clip for t in one["tokens"].tolist()] for clip in out["segments"]]


def compare(models, mel, **options):
    hf, model = models
    out = model.generate(mel, **options)
    assert [one.tokens for one in out] == generated(hf, mel, **options)
    for one in out:
        text = model.tokenizer.decode(one.tokens, skip_special_tokens=True)
        assert one.text == text.strip()
        assert one.language == "en"
    return out


@pytest.mark.parametrize("name", SHORT)
def test_each_recording_is_transcribed_as_by_hugging_face(models, mel_of, name):
    compare(models, mel_of(name), max_new_tokens=LIMIT)


def test_four_recordings_at_once_are_what_each_is_alone(models, mel_of):
    names = [SHORT[0], SHORT[1], SHORT[7], SHORT[11]]
    out = compare(models, torch.cat([mel_of(name) for name in names]), max_new_tokens=LIMIT)
    assert len({len(one.tokens) for one in out}) > 1


@pytest.mark.parametrize("name", SHORT[:2])
def test_beams_end_where_hugging_faces_do(models, mel_of, name):
    compare(models, mel_of(name), num_beams=3, max_new_tokens=LIMIT)


def test_measures_are_hugging_faces(models, mel_of):
    hf, model = models
    mel = mel_of(SHORT[1])
    out = hf.generate(mel, return_dict_in_generate=True, output_scores=True)
    scores = [score[0] for score in out.scores]
    tokens = out.sequences[0, -len(scores) :]
    (ours,) = model.generate(mel)
    expected = hf._retrieve_avg_logprobs(scores, tokens, 0.0)
    assert ours.avg_logprob == pytest.approx(float(expected), rel=1e-4)
    expected = hf._retrieve_compression_ratio(tokens, hf.config.vocab_size)
    assert ours.compression_ratio == pytest.approx(expected)


def test_a_long_recording_is_decoded_as_by_hugging_face(models, shared):
    """The rows of its times were never trained and are all the same: each likeliest time is a tie,
    which goes to the first that the rules allow. Ours has to break it in the same way.
    """
    hf, model = models
    audio = shared / "audio" / "speech_en"
    sound = torch.cat([load_audio(audio / name) for name in ("jfk.flac", "jfk.flac", "jfk.flac")])
    features = model.feature_extractor(
        sound.numpy(),
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
    ).input_features
    assert features.shape[-1] > model.config.n_frames
    options = {"max_new_tokens": LIMIT}
    theirs = hf.generate(features, return_timestamps=True, return_segments=True, **options)
    (segments,) = theirs["segments"]
    (ours,) = model.generate(features, **options)
    assert ours.tokens == [token for one in segments for token in one["tokens"].tolist()]
    expected = [float(time) for one in segments for time in (one["start"], one["end"])]
    times = [time for one in ours.segments for time in (one.start, one.end)]
    assert times == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(not EVERY, reason="takes minutes; HOOKED_ASR_ALL_FILES asks for it")
def test_every_recording_is_transcribed_as_by_hugging_face(models, shared):
    """All speech that fits a window, eight recordings at a time, forty tokens of each."""
    hf, model = models
    longest = model.config.n_frames * 160
    paths = [
        path for path in sorted((shared / "audio").rglob("*")) if "nonspeech" not in path.parts
    ]
    sounds = [(path, load_audio(path)) for path in paths if path.suffix.lower() in SUFFIXES]
    sounds = [(path, sound) for path, sound in sounds if len(sound) <= longest]
    different = []
    for start in range(0, len(sounds), 8):
        names, batch = zip(*sounds[start : start + 8], strict=True)
        mel = model.to_mel(list(batch))
        ours = [one.tokens for one in model.generate(mel, max_new_tokens=40)]
        theirs = generated(hf, mel, max_new_tokens=40)
        different += [n for n, a, b in zip(names, ours, theirs, strict=True) if a != b]
    assert len(sounds) > 700
    assert different == []
