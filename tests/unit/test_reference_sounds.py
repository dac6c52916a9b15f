"""Reference inputs: levels, spectra and times measured, and what is said of those that are none."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import welch
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import AudioError, HookedQwen2Audio, HookedWhisper
from hooked_asr.audio import load_audio, match_noise
from hooked_asr.nano import bundle
from hooked_asr.patching import find_alignment_heads
from hooked_asr.patching.alignment_heads import NoAlignmentError
from hooked_asr.patching.inputs import patching_inputs, reference_sound
from hooked_asr.patching.references import ForcedClip, forced_words
from hooked_asr.sounds import (
    NOISES,
    add_noise,
    babble,
    bundled_talkers,
    espeak,
    level,
    noise,
    noisy_span,
    resynthesised,
    rms,
    stretched,
)
from hooked_asr.sounds.espeak import Espeak, SynthesisError

KINDS = (*NOISES, "babble")
ENGLISH = bundle.clip("english")


@pytest.fixture(scope="module")
def clip():
    return load_audio(ENGLISH.path)


def decibels(ratio):
    return 20 * np.log10(ratio)


# --- Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("snr", ["10", "-5", "2.5"])
def test_noise_over_a_clip_is_as_loud_as_asked(clip, kind, snr):
    heard = reference_sound(f"{kind}:{snr}", clip, seed=3)
    assert heard.shape == clip.shape
    added = (heard.double() - clip.double()).numpy()
    speech = clip.double().numpy()
    spoken = speech[np.abs(speech) > 1e-4]
    ratio = np.sqrt(np.mean(spoken**2) / np.mean(added**2))
    assert decibels(ratio) == pytest.approx(float(snr), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_a_clips_place_is_as_loud_as_the_clip(clip, kind):
    heard = reference_sound(kind, clip, seed=3)
    assert heard.shape == clip.shape
    ratio = heard.double().square().mean().sqrt() / clip.double().square().mean().sqrt()
    assert decibels(float(ratio)) == pytest.approx(0, abs=0.01)
    assert abs(np.corrcoef(heard, clip)[0, 1]) < 0.1


@pytest.mark.parametrize("reference", [*KINDS, *(f"{kind}:5" for kind in KINDS), "noise"])
def test_the_same_seed_gives_the_same_samples(clip, reference):
    first, again, other = (reference_sound(reference, clip, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32


def test_white_noise_alone_is_the_noise_there_was(clip):
    assert torch.equal(reference_sound("white", clip, 4), match_noise(clip, 4))


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -3.0103)])
def test_spectra_fall_by_so_many_decibels_an_octave(kind, slope):
    made = noise(kind, 2**20, np.random.default_rng(0))
    hertz, power = welch(made.astype(np.float64), fs=16_000, nperseg=4096)
    heard = (hertz > 50) & (hertz < 7_500)
    measured = np.polyfit(np.log2(hertz[heard]), 10 * np.log10(power[heard]), 1)[0]
    assert measured == pytest.approx(slope, abs=0.05)


def test_babble_is_of_the_talkers_and_not_of_the_clip(clip):
    assert len(bundled_talkers()) == 5
    others = bundled_talkers(besides=clip.numpy())
    assert len(others) == 4
    made = reference_sound("babble", clip, 7).numpy()
    expected = babble(others, len(clip), np.random.default_rng(7))
    np.testing.assert_allclose(made / rms(made), expected, atol=1e-5)


def test_pauses_do_not_make_speech_quieter():
    speech = np.zeros(1_000, np.float32)
    speech[:100] = 0.5
    assert level(speech) == 0.5
    assert level(np.zeros(9, np.float32)) == 1e-3
    sound = np.ones(1_000, np.float32)
    assert (add_noise(speech, sound, 20.0) - speech) == pytest.approx(np.full(1_000, 0.05))


# --- A span of the spectrogram --------------------------------------------------------------------


def test_a_noisy_span_is_noisy_there_and_nowhere_else():
    mel = torch.randn(2, 80, 300)
    noisy = noisy_span(mel, 0.57, 1.5, sd=0.5, seed=1)
    assert torch.equal(noisy[..., :57], mel[..., :57])
    assert torch.equal(noisy[..., 150:], mel[..., 150:])
    added = (noisy - mel)[..., 57:150]
    assert (added != 0).all()
    assert float(added.std()) == pytest.approx(0.5, rel=0.02)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(added.pow(4).mean() / added.pow(2).mean() ** 2) == pytest.approx(3, abs=0.15)
    assert not torch.equal(added[0], added[1])
    assert torch.equal(noisy, noisy_span(mel, 0.57, 1.5, sd=0.5, seed=1))
    assert not torch.equal(noisy, noisy_span(mel, 0.57, 1.5, sd=0.5, seed=2))


@pytest.mark.parametrize(
    ("start", "end", "sd", "said"),
    [
        (1.0, 1.0, 1.0, "lasts from 0 to 3 s; got a span from 1 to 1"),
        (2.0, 3.5, 1.0, "lasts from 0 to 3 s"),
        (0.0, 1.0, 0.0, "a number above 0; got 0"),
        (0.0, 1.0, float("nan"), "a number above 0"),
    ],
)
def test_spans_that_are_none(start, end, sd, said):
    with pytest.raises(AudioError, match=said):
        noisy_span(torch.zeros(1, 80, 300), start, end, sd)


# --- Longer, shorter ------------------------------------------------------------------------------


def tone(hertz, seconds):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * 16_000)) / 16_000).astype("f4")


@pytest.mark.parametrize("hertz", [90.0, 220.0, 1_000.0])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0])
def test_a_stretched_tone_is_the_same_tone(hertz, factor):
    made = stretched(tone(hertz, 1.0), round(factor * 16_000))
    assert len(made) == round(factor * 16_000)
    inside = made[800:-800].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(inside * np.hanning(len(inside)), 2**18))
    assert spectrum.argmax() * 16_000 / 2**18 == pytest.approx(hertz, rel=0.01)
    assert rms(inside.astype("f4")) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_events_move_with_the_pace():
    clicks = np.zeros(16_000, np.float32)
    clicks[[3_000, 12_000]] = 1.0
    made = np.abs(stretched(clicks, 24_000))
    loud = np.flatnonzero(made > 0.3)
    assert loud[0] == pytest.approx(4_500, abs=320)  # frames are 30 ms, and taken from within 10
    assert loud[-1] == pytest.approx(18_000, abs=320)


def test_as_long_as_it_is_or_nothing_at_all():
    sound = tone(300.0, 0.1)
    assert np.array_equal(stretched(sound, len(sound)), sound)
    for length, n_samples in ((7, 1_000), (1, 1_600), (1_600, 1), (1_600, 10), (1_600, 479)):
        assert len(stretched(sound[:length], n_samples)) == n_samples
    assert not stretched(np.zeros(500, np.float32), 900).any()
    with pytest.raises(AudioError, match="0 samples cannot"):
        stretched(sound[:0], 10)
    with pytest.raises(AudioError, match="to 0"):
        stretched(sound, 0)


# --- Another voice --------------------------------------------------------------------------------

TIMES = [(0.2, 0.5), (0.5, 0.75), (1.2, 2.0), (2.3, 2.5), (2.5, 2.9), (2.9, 3.4)]
SENTENCE = "We eat white rice every day."


@pytest.fixture(scope="module")
def needs_espeak():
    pytest.importorskip("espeakng_loader")


@pytest.mark.usefixtures("needs_espeak")
def test_words_sound_in_their_times_and_nowhere_else():
    made = resynthesised(SENTENCE, TIMES, 60_000, "en-us+m3")
    assert made.shape == (60_000,)
    outside = made.copy()
    for start, end in TIMES:
        first, stop = round(start * 16_000), round(end * 16_000)
        assert rms(made[first:stop]) > 0.02
        outside[first:stop] = 0
    assert not outside.any()


@pytest.mark.usefixtures("needs_espeak")
def test_a_model_hears_the_words_of_the_new_voice(clip):
    model = HookedWhisper.from_pretrained("whisper-nano")
    sound = reference_sound("voice:en-us+m3", clip, words=lambda: ENGLISH.words)
    assert level(sound.numpy()) == pytest.approx(level(clip.numpy()), rel=0.01)
    assert model.transcribe(sound, language="en") == ENGLISH.text
    other = "My mother has a white shirt and a green dress."
    sound = reference_sound(f"voice:en-us+m3:{other}", clip, words=lambda: ENGLISH.words)
    assert model.transcribe(sound, language="en") == other


@pytest.mark.usefixtures("needs_espeak")
def test_the_same_voice_whatever_was_said_before():
    first = resynthesised(SENTENCE, TIMES, 60_000, "en-us+f3", seed=1)
    Espeak(5).say("Mein Bruder ist Arzt.", "de")
    assert np.array_equal(first, resynthesised(SENTENCE, TIMES, 60_000, "en-us+f3", seed=1))
    assert not np.array_equal(first, resynthesised(SENTENCE, TIMES, 60_000, "en-us+f3", seed=2))
    assert not np.array_equal(first, resynthesised(SENTENCE, TIMES, 60_000, "en-us+m3", seed=1))


@pytest.mark.usefixtures("needs_espeak")
def test_words_that_espeak_parts_or_joins_stay_in_their_times():
    """It says "twenty-one" as two words, "of the" as one, and a dash not at all."""
    text = "twenty-one of the cats – sleep"
    times = [(0.1, 0.9), (1.0, 1.2), (1.2, 1.5), (1.6, 2.0), (2.0, 2.0), (2.4, 2.8)]
    made = resynthesised(text, times, 48_000)
    loud = [rms(made[round(a * 16_000) : round(b * 16_000)]) for a, b in times]
    assert all(one > 0.01 for i, one in enumerate(loud) if i != 4)
    assert not made[round(0.9 * 16_000) : 16_000].any()
    assert not made[round(2.0 * 16_000) : round(2.4 * 16_000)].any()
    assert not made[round(2.8 * 16_000) :].any()


@pytest.mark.usefixtures("needs_espeak")
def test_voices_and_times_that_are_none():
    with pytest.raises(AudioError, match="3 words and 6 times"):
        resynthesised("three words only", TIMES, 60_000)
    with pytest.raises(AudioError, match=r"to the clip's 2\.00 s"):
        resynthesised(SENTENCE, TIMES, 32_000)
    with pytest.raises(AudioError, match="lie behind each other"):
        resynthesised("two words", [(0.5, 0.9), (0.1, 0.2)], 32_000)
    with pytest.raises(SynthesisError, match="no voice 'xx'"):
        resynthesised("two words", [(0.1, 0.5), (0.5, 0.9)], 32_000, "xx")


def test_without_espeak_a_voice_says_what_to_install(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(espeak, "find_library", lambda name: None)
    with pytest.raises(SynthesisError, match=r"pip install 'hooked_asr\[nano\]'"):
        reference_sound("voice:en-us", clip, words=lambda: ENGLISH.words)


# --- From a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    return HookedWhisper.from_pretrained("whisper-nano")


def forced(model, clip, text):
    asked = model.settled(clip)
    run, prompt = (model.to_inputs(clip, text=one, **asked) for one in (text, ""))
    return ForcedClip(clip, run, text, prompt["tokens"].shape[1], asked)


def test_forced_words_are_where_they_were_said(nano, clip):
    """The clip was synthesised, so its words' times are known."""
    words = forced_words(nano, forced(nano, clip, ENGLISH.text))
    assert [word.text.strip(" .") for word in words] == [word.text for word in ENGLISH.words]
    for word, said in zip(words[1:], ENGLISH.words[1:], strict=True):
        assert word.start == pytest.approx(said.start, abs=0.15)


def test_forced_words_are_generates_own(nano, clip):
    """Of the model's own transcript, with the same heads."""
    nano.generation_config.alignment_heads = find_alignment_heads(nano, clip, language="en")
    try:
        own = nano.generate(clip, language="en", words=True)[0]
        ours = forced_words(nano, forced(nano, clip, own.text))
    finally:
        del nano.generation_config.alignment_heads
    assert [word.text for word in ours] == [word.text for word in own.words]
    for mine, theirs in zip(ours, own.words, strict=True):
        assert (mine.start, mine.end) == pytest.approx((theirs.start, theirs.end), abs=0.021)


@pytest.mark.usefixtures("needs_espeak")
def test_a_voice_says_the_forced_text_of_a_run(nano, clip):
    made = patching_inputs(nano, clip, "voice:en-us+m3", text=ENGLISH.text)
    assert torch.equal(made.reference["tokens"], made.clean["tokens"])
    assert nano.transcribe(made.reference["mel"], language="en") == [ENGLISH.text]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return HookedWhisper.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def tiny_qwen2(tmp_path_factory):
    return HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path_factory.mktemp("qwen2")))


@pytest.fixture(params=["tiny", "tiny_qwen2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A clip of 0.75 s."""
    path = tmp_path_factory.mktemp("clips") / "tone.wav"
    soundfile.write(path, 0.3 * tone(440.0, 0.75), 16_000)
    return path


def test_both_families_take_a_span(model, second):
    made = patching_inputs(model, second, "span:0.2-0.4:0.7", text="no", seed=5)
    clean, noisy = made.clean["mel"], made.reference["mel"]
    assert torch.equal(noisy, noisy_span(clean, 0.2, 0.4, 0.7, 5))
    assert made.reference.keys() == made.clean.keys()
    for name in made.clean.keys() - {"mel"}:
        assert torch.equal(made.clean[name], made.reference[name])


@pytest.mark.parametrize("reference", ["pink", "clicks:3", "babble:0"])
def test_both_families_take_a_sound(model, second, reference):
    made = patching_inputs(model, second, reference, text="no", seed=5)
    samples = load_audio(second)
    expected = model.to_mel(reference_sound(reference, samples, 5))
    assert torch.equal(made.reference["mel"], expected)
    assert torch.equal(made.reference["tokens"], made.clean["tokens"])
    given = patching_inputs(model, samples, reference_sound(reference, samples, 5), text="no")
    assert torch.equal(given.reference["mel"], expected)


@pytest.mark.usefixtures("needs_espeak")
def test_a_model_that_cannot_tell_times_is_given_them(tiny_qwen2, second):
    words = [SimpleNamespace(text=" no", start=0.1, end=0.6)]
    made = patching_inputs(tiny_qwen2, second, "voice:de+m2", text="no", words=words)
    expected = reference_sound("voice:de+m2", load_audio(second), 0, lambda: words)
    assert torch.equal(made.reference["mel"], tiny_qwen2.to_mel(expected))
    with pytest.raises(NoAlignmentError, match="no cross-attention"):
        patching_inputs(tiny_qwen2, second, "voice:de+m2", text="no")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nois", "'nois' does not exist.* References are: noise .*babble.*voice.*span"),
        ("violet:3", "References are: noise"),
        ("white:", "a signal-to-noise ratio in dB, as in white:10; got ''"),
        ("babble:loud", "as in babble:10; got 'loud'"),
        ("pink:nan", "got 'nan'"),
        ("span:0.1-0.2", "write span:START-END:SD"),
        ("span:0.1-0.2:x", "write span:START-END:SD"),
        ("span:0.1-0.9:0.5", r"the clip lasts 0\.75 s; the span ends at 0\.9 s"),
        ("span:0.3-0.1:0.5", "got a span from 0.3 to 0.1"),
    ],
)
def test_references_that_are_none(tiny, second, reference, said):
    with pytest.raises(AudioError, match=said):
        patching_inputs(tiny, second, reference, text="no")


def test_where_only_sounds_will_do(clip):
    with pytest.raises(AudioError, match="noise on a spectrogram; what is asked for is a sound"):
        reference_sound("span:0.1-0.2:0.5", clip)
    with pytest.raises(AudioError, match="none are known here"):
        reference_sound("voice:en-us", clip)
    with pytest.raises(AudioError, match="no noise 'violet'; there are white, pink, hum, clicks"):
        noise("violet", 9, np.random.default_rng(0))
