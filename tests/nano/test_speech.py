"""Speech, noise and corpus: the same from the same seed, whole or not there at all."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hooked_asr.nano.clips import chant, code_switch, one_sentence, speak, two_sentences
from hooked_asr.nano.corpus import Corpus, CorpusError, build_corpus, speak_set, training_texts
from hooked_asr.nano.espeak import Espeak, SynthesisError
from hooked_asr.nano.noise import NOISES, add_noise, babble, noise, rms
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.voices import ACCENTS, HELD_OUT_SPEAKERS, LANGUAGES, TRAINING_SPEAKERS

pytestmark = pytest.mark.long

pytest.importorskip("espeakng_loader")
SMALL = Recipe(shards=2, clips_per_shard=5)


@pytest.fixture(scope="module")
def espeak():
    return Espeak()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), SMALL, workers=1, progress=False)


def test_says_words_with_their_times(espeak):
    said = espeak.say("I like white rice.", "en-us+f3")
    assert [word.text for word in said.words] == ["I", "like", "white", "rice"]
    assert all(0 <= one.start < one.end for one in said.words + said.phones)
    assert said.words[-1].end == pytest.approx(len(said.samples) / 16_000, abs=0.01)
    assert "ɹ" in [phone.text for phone in said.phones]


def test_faster_is_shorter_and_a_stretch_is_longer(espeak):
    usual, fast, large = (
        len(espeak.say("I like white rice.", "en-us+f3", **how).samples)
        for how in ({}, {"rate": 220}, {"stretch": 1.1})
    )
    assert fast < 0.9 * usual
    assert large == pytest.approx(1.1 * usual, rel=0.01)


def test_women_speak_higher_than_men(espeak):
    def pitch(speaker):
        samples = espeak.say("We are all alone on the moor.", f"en-us+{speaker}").samples
        frames = samples[: len(samples) // 1024 * 1024].reshape(-1, 1024).astype(np.float32)
        loud = [one for one in frames if rms(one) > 0.5 * rms(frames.ravel())]
        lags = [
            50 + np.correlate(one, one, "full")[1023 + 50 : 1023 + 200].argmax() for one in loud
        ]
        return 16_000 / np.median(lags)

    for speakers in (TRAINING_SPEAKERS, HELD_OUT_SPEAKERS):
        assert max(map(pitch, speakers["male"])) < min(map(pitch, speakers["female"]))


def test_every_accent_speaks(espeak):
    for accents in ACCENTS.values():
        for voice in accents.values():
            assert len(espeak.say("Hola, no.", f"{voice}+m3").samples) > 4_000


def test_an_unknown_voice_is_refused_by_name(espeak):
    with pytest.raises(SynthesisError, match="no voice 'xx-nowhere'"):
        espeak.say("Hello.", "xx-nowhere")


def test_held_out_speakers_are_not_trained_on():
    for sex, speakers in HELD_OUT_SPEAKERS.items():
        assert not set(speakers) & set(TRAINING_SPEAKERS[sex])


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_seeded_and_at_its_level(kind):
    first, again, other = (noise(kind, 8_000, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert rms(first) == pytest.approx(1.0, rel=1e-4)


def test_noise_is_as_many_decibels_below_the_speech_as_asked():
    rng = np.random.default_rng(0)
    speech = (rng.standard_normal(16_000) * 0.1).astype(np.float32)
    heard = add_noise(speech, noise("pink", 16_000, rng), snr=10.0)
    assert 20 * np.log10(rms(speech) / rms(heard - speech)) == pytest.approx(10, abs=0.05)
    # A pause does not make the speech count as quieter.
    padded = np.concatenate([speech, np.zeros(16_000, np.float32)])
    heard = add_noise(padded, noise("white", 32_000, rng), snr=10.0)
    assert 20 * np.log10(rms(speech) / rms((heard - padded)[:16_000])) == pytest.approx(10, abs=0.2)


def test_babble_holds_every_talker():
    talkers = [np.sin(np.arange(4_000) * w).astype(np.float32) for w in (0.1, 0.4)]
    mixed = babble(talkers, 8_000, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(mixed))
    strongest = np.sort(np.argsort(spectrum)[-2:] * 2 * np.pi / 8_000)
    assert strongest == pytest.approx([0.1, 0.4], abs=0.01)


def test_clips_say_what_their_plans_say(espeak):
    rng = random.Random(0)
    two = speak(espeak, two_sentences(rng, "de"))
    (first, second), (a, b) = two.segments, two.plan.parts
    assert (first.text, second.text) == (a.written, b.written)
    assert first.end + 0.14 < second.start
    assert two.seconds == pytest.approx(second.end, abs=1e-3)
    assert two.words[-1].start > second.start
    switched = code_switch(rng, "en")
    assert switched.parts[0].voice.language != switched.parts[1].voice.language


def test_a_chant_goes_on_for_longer_in_some_transcripts_but_never_in_evaluation():
    rng = random.Random(0)

    def counts(evaluated):
        parts = [chant(rng, "en", evaluated).parts[0] for _ in range(200)]
        return [(p.spoken.count(",") + 1, p.written.count(",") + 1) for p in parts]

    assert all(spoken == written for spoken, written in counts(True))
    longer = [spoken < written for spoken, written in counts(False)]
    assert 0.1 < np.mean(longer) < 0.5


def test_learners_say_the_neighbour_and_mean_the_likely_word():
    rng = random.Random(0)
    plans = [one_sentence(rng, "en", learners=1.0) for _ in range(400)]
    learners = [plan.parts[0] for plan in plans if plan.kind == "learner"]
    assert 20 < len(learners) < 120
    assert all(part.spoken != part.written for part in learners)


def test_plans_spoken_again_in_a_new_process_are_the_same_samples():
    rng = random.Random(0)
    plans = [one_sentence(rng, language, evaluated=True) for language in LANGUAGES]
    first, again = speak_set(plans, seed=3), speak_set(plans, seed=3)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first, again, strict=True))


def test_corpus_is_read_as_it_was_spoken(corpus):
    assert len(corpus) == 10
    clip = corpus[7]
    assert clip.seconds == corpus.seconds()[7]
    assert clip.segments[-1].end == pytest.approx(clip.seconds, abs=1e-3)
    assert clip.text == " ".join(part.written for part in clip.plan.parts)
    assert corpus.phones[0] in "aeiontsə"


def test_the_texts_of_a_corpus_are_told_without_speaking_it(tmp_path):
    recipe = replace(SMALL, seconds=60)  # none is too long
    corpus = build_corpus(tmp_path, recipe, workers=1, progress=False)
    written = Counter(segment.text for clip in corpus for segment in clip.segments)
    assert training_texts(recipe, progress=False) == written


def test_a_corpus_that_was_stopped_goes_on_and_ends_the_same(corpus, tmp_path):
    for file in corpus.folder.iterdir():
        if file.name != "shard-0001.jsonl":  # the file that says a shard is whole
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CorpusError, match="1 of 2 shards are missing"):
        Corpus(tmp_path)
    build_corpus(tmp_path, SMALL, workers=1, progress=False)
    for file in corpus.folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_another_recipe_is_refused(corpus):
    with pytest.raises(CorpusError, match="another recipe"):
        build_corpus(corpus.folder, replace(SMALL, seed=2), progress=False)


def test_no_corpus_says_what_to_run(tmp_path):
    with pytest.raises(CorpusError, match="hooked-asr nano corpus"):
        Corpus(tmp_path)
