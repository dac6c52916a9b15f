"""Sound files and arrays become the samples and the log-mel they should, or a clear error."""

import json
import os
import re
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from hooked_asr.audio import AudioError, load_audio, log_mel, match_noise

SHARED = Path(os.environ.get("HOOKED_ASR_SHARED") or Path(__file__).parents[2].parent / "shared")
MANIFEST = SHARED / "audio" / "manifest.json"
needs_recordings = pytest.mark.skipif(not MANIFEST.is_file(), reason="no shared recordings")

EDGE = 1600  # samples at either end where a resampler has only half a signal to look at


def sine(seconds, rate, hertz=1000.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def error_to(audio, expected):
    """The largest difference away from the edges."""
    assert len(audio) == len(expected)
    return np.abs(audio.numpy() - expected)[EDGE:-EDGE].max()


def refusal(call, *args, **kwargs):
    with pytest.raises(AudioError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request):
    return WhisperFeatureExtractor(feature_size=request.param)


# Files of every kind


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "channels", "tolerance"),
    [
        ("a.wav", 16000, "PCM_16", 1, 4e-5),
        ("a.wav", 44100, "PCM_24", 2, 2e-6),
        ("a.wav", 8000, "PCM_16", 1, 4e-5),
        ("a.wav", 22050, "PCM_32", 1, 2e-6),
        ("a.wav", 96000, "FLOAT", 6, 2e-6),
        ("a.wav", 16000, "DOUBLE", 1, 1e-7),
        ("a.wav", 16000, "PCM_U8", 1, 1e-2),
        ("a.aiff", 48000, "PCM_24", 2, 2e-6),
        ("a.flac", 44100, "PCM_24", 2, 2e-6),
        ("a.flac", 11025, "PCM_16", 1, 4e-5),
        ("a.ogg", 44100, "VORBIS", 2, 2e-2),
        ("a.ogg", 48000, "OPUS", 1, 2e-2),
        ("a.mp3", 44100, "MPEG_LAYER_III", 2, 2e-2),
        ("a.mp3", 24000, "MPEG_LAYER_III", 1, 2e-2),
    ],
)
def test_a_file_becomes_the_same_sine_at_16_khz(tmp_path, name, rate, subtype, channels, tolerance):
    path = tmp_path / name
    soundfile.write(path, np.stack([sine(2, rate)] * channels, 1), rate, subtype=subtype)
    audio = load_audio(path)
    assert audio.dtype == torch.float32
    assert audio.device.type == "cpu"
    assert error_to(audio, sine(2, 16000)) < tolerance


@pytest.mark.parametrize(("bytes_each", "rate", "tolerance"), [(1, 16000, 1e-2), (2, 8000, 4e-5)])
def test_a_wav_written_by_the_standard_library(tmp_path, bytes_each, rate, tolerance):
    values = sine(1, rate)
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(bytes_each)
        out.setframerate(rate)
        if bytes_each == 1:
            out.writeframes((np.round(values * 128) + 128).astype(np.uint8).tobytes())
        else:
            out.writeframes(np.round(values * 32768).astype("<i2").tobytes())
    assert error_to(load_audio(str(path)), sine(1, 16000)) < tolerance


def test_what_16_khz_cannot_hold_is_filtered_and_not_folded_down(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, 48000, hertz=12000), 48000, subtype="FLOAT")
    assert error_to(load_audio(path), np.zeros(16000)) < 1e-5


def test_channels_of_a_file_are_averaged(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([sine(1, 16000), np.full(16000, 0.25)], 1), 16000, "DOUBLE")
    assert error_to(load_audio(path), (sine(1, 16000) + 0.25) / 2) < 1e-6


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff"])
def test_a_file_at_16_khz_is_what_soundfile_decodes(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), 16000)
    expected, _ = soundfile.read(path, dtype="float32")
    # soundfile seeks before it reads, and mpg123 rounds a little differently after a seek.
    tolerance = 1.5e-7 if suffix == "mp3" else 0
    np.testing.assert_allclose(load_audio(path).numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F000, 0x7FFF_FFFF])
def test_a_wav_written_to_a_pipe_promises_no_length(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, 16000), 16000)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 4, size)
    struct.pack_into("<I", content, content.index(b"data") + 4, size)
    path.write_bytes(content)
    assert error_to(load_audio(path), sine(1, 16000)) < 4e-5


def test_a_flac_written_to_a_pipe_states_no_length(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sine(3, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36-bit count of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(path).frames > 2**62
    assert error_to(load_audio(path), sine(3, 16000)) < 4e-5


def test_tags_around_the_sound_are_no_damage(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, 16000), 16000)
    path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0abcd")
    assert len(load_audio(path)) == 16000
    for name in ("a.mp3", "a.flac"):
        path = tmp_path / name
        soundfile.write(path, sine(1, 16000), 16000)
        path.write_bytes(id3(5000) + path.read_bytes() + b"TAG" + bytes(125))
        assert len(load_audio(path)) == 16000


# Arrays


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [("int8", 2**7, 0), ("uint8", 2**7, 128), ("int16", 2**15, 0), ("int32", 2**31, 0)],
)
def test_integers_are_scaled_by_their_range(dtype, scale, offset):
    values = np.round(sine(1, 16000) * scale + offset).astype(dtype)
    for source in (values, torch.from_numpy(values)):
        assert error_to(load_audio(source), sine(1, 16000)) <= 0.5 / scale + 1e-7
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    ends = load_audio(np.array([lowest, highest], dtype)).numpy()
    assert ends[0] == -1.0
    assert ends[1] == pytest.approx(1 - 1 / scale, abs=1e-7)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integers_agree_with_the_floats_of_the_same_file(tmp_path, dtype):
    path = tmp_path / "a.wav"
    values = np.random.default_rng(0).uniform(-1, 1, 20_000)
    soundfile.write(path, values, 22050, subtype="PCM_16" if dtype == "int16" else "PCM_24")
    integers, rate = soundfile.read(path, dtype=dtype)
    assert torch.equal(load_audio(integers, rate), load_audio(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_taken_as_they_are(dtype):
    samples = torch.linspace(-1.5, 1.5, 101).to(dtype)
    assert torch.equal(load_audio(samples), samples.float())
    if dtype != torch.bfloat16:
        assert torch.equal(load_audio(samples.numpy().astype(">f8")), samples.float())


@given(st.lists(st.floats(-32, 32, width=32), min_size=1, max_size=50).filter(any))
def test_16_khz_floats_come_back_bit_for_bit(values):
    values = np.array(values, dtype=np.float32)
    assert np.array_equal(load_audio(values).numpy(), values)
    assert np.array_equal(load_audio(torch.from_numpy(values)[None]).numpy(), values)


@given(st.integers(1, 6), st.integers(7, 40), st.integers(0, 99))
def test_the_shorter_axis_is_the_channels(channels, length, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, (channels, length)).astype(np.float32)
    expected = samples.astype(np.float64).mean(0)
    for source in (samples, samples.T, torch.from_numpy(samples), torch.from_numpy(samples).T):
        np.testing.assert_allclose(load_audio(source).numpy(), expected, atol=1e-6)


def test_an_array_is_resampled_from_the_rate_it_is_said_to_have():
    assert error_to(load_audio(sine(1, 8000), 8000), sine(1, 16000)) < 2e-6
    assert error_to(load_audio(sine(1, 44100), 44100), sine(1, 16000)) < 2e-6
    assert torch.equal(load_audio(sine(1, 16000)), load_audio(sine(1, 16000), 16000))


def test_the_caller_s_memory_is_not_shared():
    array, tensor = np.ones(10, np.float32), torch.ones(10, requires_grad=True)
    load_audio(array).zero_()
    load_audio(tensor).zero_()
    assert array.all()
    assert tensor.all()


# What is refused


def test_a_missing_file_is_answered_with_its_neighbours(tmp_path):
    for name in ("interview.flac", "INTERVIEW_2.FLAC", "other.mp3"):
        (tmp_path / name).touch()
    message = refusal(load_audio, tmp_path / "interview_2.wav")
    assert f"'{tmp_path / 'interview_2.wav'}' does not exist" in message
    assert "INTERVIEW_2.FLAC, interview.flac" in message
    assert "other.mp3" not in message
    assert "similar" in refusal(load_audio, tmp_path / "zzz.au")
    assert str(tmp_path / "nowhere") in refusal(load_audio, str(tmp_path / "nowhere" / "a.wav"))


def test_a_folder_or_a_pipe_is_no_sound_file(tmp_path):
    message = refusal(load_audio, tmp_path)
    assert str(tmp_path) in message
    assert "is a folder" in message
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refusal(load_audio, tmp_path / "pipe.wav")


@pytest.mark.parametrize("name", ["my clip.wav", "my clip.mp3", "my clip.m4a", "my clip.raw"])
def test_what_is_no_sound_file_should_be_converted(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"This is text.\n" * 20)
    message = refusal(load_audio, path)
    assert str(path) in message
    assert "280 bytes" in message
    assert f"ffmpeg -i '{name}' 'my clip-converted.wav'" in message


def test_an_empty_file_and_a_clip_of_no_samples_are_refused(tmp_path):
    (tmp_path / "nothing.wav").touch()
    assert "nothing.wav' is empty: 0 bytes" in refusal(load_audio, tmp_path / "nothing.wav")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16000)
    assert "header.wav' is empty" in refusal(load_audio, tmp_path / "header.wav")
    for shape in [(0,), (0, 2), (2, 0), (0, 0)]:
        assert "0 samples" in refusal(load_audio, np.zeros(shape))
    assert "96000 Hz" in refusal(load_audio, np.ones(1), sample_rate=96000)


def id3(size):
    """An ID3v2 tag with `size` bytes of padding, as big as cover art would make it."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + digits + bytes(size)


def noisy(seconds, rate=16000):
    """Sound that is hard to compress in its second half, so that a variable bit rate varies."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * rate)
    noise[: len(noise) // 2] *= 1e-3
    return noise


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    soundfile.write(path, noisy(4), 16000)
    content = path.read_bytes()
    assert len(load_audio(path)) == 64000
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(load_audio, path)
    assert str(path) in message
    assert "ffmpeg" in message


def test_a_truncated_file_tells_what_is_missing(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, 16000), 16000)
    path.write_bytes(path.read_bytes()[:16044])
    assert "32000 bytes of samples are promised, 16000 are there" in refusal(load_audio, path)
    path.write_bytes(path.read_bytes()[:44])
    assert "32000 bytes of samples are promised, 0 are there" in refusal(load_audio, path)


def test_a_truncated_mp3_is_refused_where_its_frame_count_follows_a_tag(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, noisy(4), 16000)
    content = path.read_bytes()
    path.write_bytes(id3(5000) + content[: len(content) // 2])
    assert "4.00 s are promised" in refusal(load_audio, path)


def test_a_flac_cut_between_two_frames_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sine(3, 16000), 16000)
    content = path.read_bytes()
    frames = [match.start() for match in re.finditer(rb"\xff\xf8", content)]
    path.write_bytes(content[: frames[6]])
    assert "3.00 s are promised, 1.54 s can be decoded" in refusal(load_audio, path)


def test_a_file_with_damage_in_the_middle_is_refused(tmp_path):
    for name in ("a.flac", "a.mp3"):
        path = tmp_path / name
        soundfile.write(path, noisy(4), 16000)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 300] = bytes(300)
        path.write_bytes(content)
        assert "cannot be decoded to its end" in refusal(load_audio, path)


def mp3_without_frame_count(path, bitrate_mode):
    """Drops the first MPEG frame, which holds nothing but the number of the others."""
    soundfile.write(path, noisy(8), 16000, bitrate_mode=bitrate_mode, compression_level=0.5)
    content = path.read_bytes()
    return content[content.index(content[:2], 2) :]


def test_an_mp3_of_constant_rate_needs_no_frame_count(tmp_path):
    path = tmp_path / "a.mp3"
    content = mp3_without_frame_count(path, "CONSTANT")
    # libsndfile guesses the length from the file's size, which the tag inflates by a third.
    path.write_bytes(id3(len(content) // 3) + content)
    assert soundfile.info(path).duration > 10
    assert len(load_audio(path)) / 16000 == pytest.approx(8, abs=0.15)  # with the encoder's delay


def test_an_mp3_of_variable_rate_without_a_frame_count_is_refused_rather_than_cut(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3_without_frame_count(path, "VARIABLE"))
    assert len(soundfile.read(path)[0]) / 16000 < 7
    assert "bytes of MP3 frames are left undecoded" in refusal(load_audio, path)


def test_several_files_in_one_are_refused_rather_than_cut(tmp_path):
    for name in ("a.mp3", "a.ogg"):
        path = tmp_path / name
        soundfile.write(path, noisy(4), 16000)
        path.write_bytes(path.read_bytes() * 2)
        assert len(soundfile.read(path)[0]) == 64000
        assert "cannot be decoded to its end" in refusal(load_audio, path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    samples = sine(1, 16000).astype(np.float32)
    samples[[7, 700]] = bad
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    message = refusal(load_audio, tmp_path / "a.wav")
    assert str(tmp_path / "a.wav") in message
    assert "2 of 16000 samples" in message
    assert "NaN" in refusal(load_audio, samples)
    assert "NaN" in refusal(load_audio, torch.from_numpy(samples))


@pytest.mark.parametrize("scale", [2**7, 2**15, 1e300])
def test_floats_that_look_like_integers_are_refused(scale):
    message = refusal(load_audio, sine(1, 16000) * scale)
    assert f"up to {0.5 * scale:g}" in message
    assert "32768" in message


@pytest.mark.parametrize("dtype", ["int64", "uint16", "uint32", "bool", "complex64"])
def test_types_with_no_agreed_scale_are_refused(dtype):
    message = refusal(load_audio, np.ones(10, dtype))
    assert dtype in message
    assert "int16" in message


def test_other_shapes_are_refused():
    assert "either axis" in refusal(load_audio, np.ones((3, 3)))
    assert "(2, 3, 100)" in refusal(load_audio, np.ones((2, 3, 100)))
    assert "[sample]" in refusal(load_audio, torch.tensor(0.5))
    # The annotations refuse it first where they are checked.
    with pytest.raises((AudioError, TypeError), match=r"source|Expected a path"):
        load_audio([0.1, 0.2])


@pytest.mark.parametrize("rate", [0, -16000])
def test_a_rate_that_is_none_is_refused(rate):
    assert str(rate) in refusal(load_audio, np.ones(10), rate)


def test_a_rate_that_contradicts_the_file_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, 44100), 44100)
    message = refusal(load_audio, path, sample_rate=16000)
    assert str(path) in message
    assert "44100" in message
    assert "16000" in message
    assert torch.equal(load_audio(path, sample_rate=44100), load_audio(path))


def test_silence_warns_and_names_the_clip(tmp_path):
    path = tmp_path / "still.wav"
    soundfile.write(path, np.zeros(1000), 8000)
    with pytest.warns(UserWarning, match=r"still\.wav' is silent") as caught:
        audio = load_audio(path)
    assert len(caught) == 1
    assert len(audio) == 2000
    assert not audio.any()
    with pytest.warns(UserWarning, match="averaged"):
        load_audio(np.stack([sine(1, 16000), -sine(1, 16000)]))


# Log-mel


def test_log_mel_is_the_extractor_s_bit_for_bit(tmp_path, extractor):
    soundfile.write(tmp_path / "a.wav", sine(1, 44100) + noisy(1, 44100), 44100)
    for source in (sine(2, 16000), tmp_path / "a.wav"):
        samples = load_audio(source).numpy()
        expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
        mel = log_mel(source, extractor)
        assert mel.shape == (1, extractor.feature_size, 3000)
        assert mel.dtype == torch.float32
        assert torch.equal(mel, expected)


def test_log_mel_of_a_batch_is_that_of_each_clip(tmp_path, extractor):
    path = tmp_path / "a.flac"
    soundfile.write(path, noisy(3), 16000)
    clips = (noisy(30), path, 1e-4 * torch.ones(1), np.ones((2, 100), np.int16))
    alone = torch.cat([log_mel(clip, extractor) for clip in clips])
    assert torch.equal(log_mel(clips, extractor), alone)
    assert torch.equal(log_mel([clips[2], clips[0]], extractor), alone[[2, 0]])
    samples = [load_audio(clip).numpy() for clip in clips]
    together = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(alone, together)


def test_log_mel_resamples_arrays(extractor):
    at_8_khz = sine(1, 8000)
    mel = log_mel([at_8_khz, at_8_khz], extractor, sample_rate=8000)
    assert torch.equal(mel[1:], log_mel(load_audio(at_8_khz, 8000), extractor))
    assert not torch.equal(mel[1:], log_mel(at_8_khz, extractor))


def test_a_clip_longer_than_the_window_is_refused(tmp_path, extractor):
    window = torch.full((extractor.n_samples,), 0.1)
    assert log_mel(window, extractor).shape[-1] == 3000
    message = refusal(log_mel, torch.cat([window, window[:1]]), extractor)
    assert "480001 samples" in message
    assert "480000 samples" in message
    assert "Cut it into windows of at most 30 s" in message
    path = tmp_path / "long.wav"
    soundfile.write(path, sine(61.5, 8000), 8000)
    message = refusal(log_mel, [sine(1, 16000), path], extractor)
    assert "clip 1" in message
    assert "long.wav" in message
    assert "61.50 s" in message


def test_the_window_is_the_extractor_s_own():
    extractor = WhisperFeatureExtractor(chunk_length=5)
    assert log_mel(sine(5, 16000), extractor).shape == (1, 80, 500)
    assert "at most 5 s" in refusal(log_mel, sine(5.5, 16000), extractor)


def test_a_bad_clip_in_a_batch_is_named(extractor):
    clips = [sine(1, 16000), np.full(10, np.nan)]
    assert "clip 1" in refusal(log_mel, clips, extractor)
    assert "at least one" in refusal(log_mel, [], extractor)
    with pytest.warns(UserWarning, match="clip 1 .* is silent"):
        log_mel([sine(1, 16000), np.zeros(10)], extractor)


# Noise


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(1e-6, 10), st.integers(0, 2**63 - 1))
def test_noise_has_the_clip_s_length_and_level(length, level, seed):
    audio = level * torch.from_numpy(np.sin(np.arange(1, length + 1)).astype(np.float32))
    noise = match_noise(audio, seed)
    assert noise.shape == audio.shape
    assert noise.dtype == audio.dtype
    rms, expected = (np.sqrt(np.mean(x.double().numpy() ** 2)) for x in (noise, audio))
    assert rms == pytest.approx(expected, rel=1e-5)


def test_noise_is_white_gaussian_and_seeded():
    audio = torch.from_numpy(sine(10, 16000))
    noise = match_noise(audio)
    assert torch.equal(noise, match_noise(audio, seed=0))
    assert not torch.equal(noise, match_noise(audio, seed=1))
    unit = (noise / noise.std()).numpy()
    assert abs(unit.mean()) < 0.01
    assert np.mean(unit**4) == pytest.approx(3, abs=0.1)  # a Gaussian's kurtosis
    bands = (np.abs(np.fft.rfft(unit)[1:]) ** 2).reshape(10, -1).mean(1)
    assert bands.max() / bands.min() < 1.1


def test_noise_for_silence_lies_at_minus_60_dbfs():
    noise = match_noise(torch.zeros(16000))
    assert 20 * noise.square().mean().sqrt().log10().item() == pytest.approx(-60, abs=1e-3)


# Recordings


@needs_recordings
def test_the_stereo_44_khz_recording_matches_the_log_mel_of_its_own_samples(extractor):
    path = SHARED / "audio" / "speech_en" / "jfk.flac"
    audio = load_audio(path)
    assert len(audio) == 11 * 16000
    expected = extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(log_mel(path, extractor), expected)


@needs_recordings
@pytest.mark.parametrize("suffix", [".wav", ".WAV", ".flac", ".ogg", ".aiff", ".mp3"])
def test_every_recording_loads_at_its_full_length(suffix):
    entries = [e for e in json.loads(MANIFEST.read_text()) if e["file"].endswith(suffix)]
    assert entries
    for entry in entries:
        seconds = float(entry["info"].split("s ")[0])
        audio = load_audio(SHARED / "audio" / entry["file"])
        assert len(audio) / 16000 == pytest.approx(seconds, abs=0.01), entry["file"]
        assert audio.isfinite().all()
        assert audio.any()
