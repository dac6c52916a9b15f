"""The small corpus's sentences: repeatable, varied, clean, and right in three languages."""

import random
import re

import pytest

from hooked_asr.nano.grammar import (
    PAIRS,
    GrammarError,
    confused,
    held_out,
    sentence,
    vocabulary,
)
from hooked_asr.nano.lexicon import GROUPS
from hooked_asr.nano.phrases import capitalised, contract, phrase

CLEAN = re.compile(r"¿?[A-ZÁÉÍÓÚÑÄÖÜ][A-Za-zÁÉÍÓÚÑÄÖÜáéíóúñüäöß ,'¿¡]*[.?]")
WORDS = {(word.group, word.lemma): word for group in GROUPS.values() for word in group}


def draw(count, seed=0):
    rng = random.Random(seed)
    return [sentence(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def drawn():
    return draw(1500)


def said(slot, language, **words):
    chosen = {letter: WORDS[tuple(word.split("/"))] for letter, word in words.items()}
    return contract(phrase(slot, language, chosen), language)


def test_the_same_seed_draws_the_same_sentences():
    assert draw(100, seed=7) == draw(100, seed=7)
    assert draw(100, seed=7) != draw(100, seed=8)


def test_texts_are_written_as_whisper_writes(drawn):
    for text in (text for one in drawn for text in one.texts.values()):
        assert CLEAN.fullmatch(text), text
        assert "  " not in text
        assert len(text.split()) <= 11


def test_most_sentences_have_two_words_or_more(drawn):
    lengths = [len(text.split()) for one in drawn for text in one.texts.values()]
    assert sum(length >= 2 for length in lengths) > 0.97 * len(lengths)


def test_draws_seldom_repeat(drawn):
    assert len({tuple(one.texts.values()) for one in drawn}) > 1000


@pytest.mark.long
def test_pairs_come_up_with_the_word_that_fits(drawn):
    paired = [one for one in drawn if one.pair]
    likely = [one for one in paired if one.words == (("pair", one.pair.word),)]
    assert 0.19 < len(paired) / len(drawn) < 0.25
    assert 0.68 < len(likely) / len(paired) < 0.82
    assert all(set(one.texts) == {one.pair.language} for one in paired)
    expected = {(pair, word) for pair in PAIRS for word in (pair.word, pair.partner)}
    rng, words = random.Random(1), set()
    for _ in range(6000):
        one = sentence(rng)
        if one.pair:
            words.add((one.pair, one.words[0][1]))
        if len(words) == len(expected):
            break
    assert words == expected  # of all pairs, both words


@pytest.mark.parametrize("language", ["en", "es", "de"])
def test_the_vocabulary_holds_every_word_drawn(language, drawn):
    known = vocabulary(language)
    texts = [one.texts[language] for one in drawn if language in one.texts]
    assert 250 <= len(known) <= 700
    assert set(re.findall(r"\w+", " ".join(texts).lower())) <= known


def test_an_unknown_language_is_refused():
    with pytest.raises(GrammarError, match="fr"):
        vocabulary("fr")


def test_confused_swaps_both_ways_and_keeps_the_case():
    rice = PAIRS[0]
    assert confused("I would like some white rice, please.", rice) == (
        "I would like some white lice, please."
    )
    assert confused("Lice and rice.", rice) == "Rice and lice."
    with pytest.raises(GrammarError, match="neither"):
        confused("The price.", rice)


def test_one_sentence_in_twenty_is_held_out_and_no_fragment(drawn):
    texts = {one.texts["en"] for one in drawn if "en" in one.texts}
    long = [text for text in texts if len(text.split()) >= 4]
    assert 0.03 < sum(map(held_out, long)) / len(long) < 0.07
    assert not any(held_out(text) for text in texts.difference(long))


APPLES = {"x": "fruit/apple", "c": "colour/red"}
COAT = {"x": "clothing/coat", "c": "quality/old"}
BEAR = {"x": "animal/bear", "c": "quality/big"}
WATER = {"x": "drink/water", "c": "quality/cold"}
SISTER = {"r": "family/sister", "j": "job/engineer"}
RENDERINGS = [
    ("en", "x a", APPLES, "an apple"),
    ("en", "x a +c", APPLES, "a red apple"),
    ("en", "x a +c", COAT, "an old coat"),
    ("en", "x pl this +c", APPLES, "these red apples"),
    ("en", "x pl", {"x": "body/foot"}, "feet"),
    ("en", "j a", SISTER, "an engineer"),
    ("es", "x pl +c", APPLES, "manzanas rojas"),
    ("es", "x pl this +c", APPLES, "estas manzanas rojas"),
    ("es", "x a +c", COAT, "un abrigo viejo"),
    ("es", "x the +c", WATER, "el agua fría"),
    ("es", "x pl my", {"x": "family/uncle"}, "mis tíos"),
    ("es", "x the", {"x": "body/hand"}, "la mano"),
    ("es", "c for x pl", {"x": "footwear/boot", "c": "colour/blue"}, "azules"),
    ("es", "c for x pl", {"x": "footwear/boot", "c": "colour/brown"}, "marrones"),
    ("es", "j for r", SISTER, "ingeniera"),
    ("es", "j for r", {"r": "family/wife", "j": "job/actor"}, "actriz"),
    ("es", "w past", {"w": "weather/sunny"}, "hacía sol"),
    ("de", "x a acc +c", APPLES, "einen roten Apfel"),
    ("de", "x a nom +c", APPLES, "ein roter Apfel"),
    ("de", "x pl acc +c", APPLES, "rote Äpfel"),
    ("de", "x pl the dat +c", APPLES, "den roten Äpfeln"),
    ("de", "x a acc +c", BEAR, "einen großen Bären"),
    ("de", "x the nom +c", BEAR, "der große Bär"),
    ("de", "x acc +c", WATER, "kaltes Wasser"),
    ("de", "r my dat", SISTER, "meiner Schwester"),
    ("de", "j for r", SISTER, "Ingenieurin"),
    ("de", "x pl my nom", {"x": "body/foot"}, "meine Füße"),
    ("de", "x this nom", COAT, "dieser Mantel"),
]


@pytest.mark.parametrize(("language", "slot", "words", "expected"), RENDERINGS)
def test_a_phrase_agrees(language, slot, words, expected):
    assert said(slot, language, **words) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("es", "voy a el parque", "voy al parque"),
        ("es", "al lado de el banco", "al lado del banco"),
        ("es", "madre y hija", "madre e hija"),
        ("de", "in dem Garten", "im Garten"),
        ("de", "zu der Schule", "zur Schule"),
        ("de", "zu dem Markt", "zum Markt"),
    ],
)
def test_small_words_contract(language, text, expected):
    assert contract(text, language) == expected


def test_a_spanish_question_starts_with_its_mark():
    assert capitalised("¿dónde está?") == "¿Dónde está?"
