"""The open vocabulary: enough of everything, nothing twice, and beyond whisper-nano's own."""

import random
import re
from collections import Counter

import jaxtyping
import pytest

from hooked_asr import datasets
from hooked_asr.datasets.open import OpenTexts
from hooked_asr.datasets.texts import distinct_sentences
from hooked_asr.manifests import read_clips
from hooked_asr.nano.lexicon import GROUPS


@pytest.fixture(scope="module")
def texts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield OpenTexts(held_out=True)


def test_there_are_700_sentences_for_either_use(texts):
    kept = [text for _, text in distinct_sentences(texts, 700, ["en"], "test", 0)]
    others = [text for _, text in distinct_sentences(OpenTexts(False), 700, ["en"], "test", 0)]
    assert len(set(kept) | set(others)) == 1400
    for text in kept + others:
        assert re.fullmatch(r"[A-Z][^\[\]|]+\.", text)
        assert "  " not in text


@pytest.mark.parametrize("language", ["es", "de"])
def test_other_languages_have_theirs(texts, language):
    drawn = [text for _, text in distinct_sentences(texts, 150, [language], "test", 0)]
    assert len(set(drawn)) == 150
    assert not any(re.search(r"[\[\]|]", text) for text in drawn)


def test_sentences_go_beyond_the_small_vocabulary(texts):
    forms = [word.en for words in GROUPS.values() for word in words]
    known = {text.lower() for form in forms for text in (form.base, form.other)}
    words = Counter(
        word
        for _, text in distinct_sentences(texts, 300, ["en"], "test", 0)
        for word in re.findall(r"[^\W\d_]+", text.lower())
    )
    assert sum(word not in known for word in words) > 400


def test_there_are_700_minimal_pairs_and_none_twice(texts):
    pairs = texts.pairs("en")
    assert len({frozenset((one.word, one.partner)) for one in pairs}) * 2 == len(pairs) == 280
    confused = [frame.format(one.partner) for one in pairs for frame in one.frames]
    likely = [frame.format(one.word) for one in pairs for frame in one.frames]
    assert len(confused) >= 700
    assert len(set(confused) | set(likely)) == 2 * len(confused)
    for one in pairs:
        assert one.word != one.partner
        for frame in one.frames:
            assert frame.count("{}") == 1
            assert not re.search(r"\ban \{\}", frame)
            assert not {one.word, one.partner} & set(re.findall(r"\w+", frame.lower()))


def test_there_are_categories_of_twenty_words_and_more(texts):
    found = texts.categories("en")
    assert len(found) >= 8
    assert min(map(len, found.values())) >= 20
    every = [word for words in found.values() for word in words]
    assert len(set(every)) == len(every)


def test_a_chant_is_one_word(texts):
    for language in ("en", "es", "de"):
        words = texts.chant(random.Random(0), language, 9).lower().rstrip(".").split(", ")
        assert len(words) == 9
        assert len(set(words)) == 1


def test_what_is_not_there_in_a_language_is_told(texts):
    with pytest.raises(datasets.DatasetError, match="has pairs in en, not in 'de'"):
        texts.pairs("de")


def test_both_words_of_a_pair_are_said_where_the_other_is_likely(texts, tmp_path):
    pytest.importorskip("espeakng_loader")
    manifest = datasets.minimal_pairs(
        tmp_path, 40, kinds=("confused",), speakers=1, vocabulary="open", progress=False
    )
    clips = read_clips(manifest)
    assert len({one.text for one in clips}) == 40
    assert all(one.labels["word"] in one.text.lower().rstrip(".?").split() for one in clips)
