"""Word and character errors are jiwer's; texts are normalised as Whisper's evaluation does."""

import sys

import jiwer
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import WhisperTokenizer
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from hooked_asr.speech import (
    Difference,
    ErrorCounts,
    LanguageError,
    WordErrorsError,
    aligned,
    cer,
    count_character_errors,
    count_word_errors,
    normalise,
    normaliser,
    wer,
)

ENGLISH = [
    "Mr. O'Neil can't colour twenty-one pages, um, he'd [laughs] gone!",
    "It cost $2 and 50 cents (about) in the 1960s; one oh one.",
    "ÉCOLE naïve -- the 3rd & 4th",
    "",
]

sentences = st.lists(st.sampled_from(["a", "b", "cc", "dd"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=4)


# --- Normalising


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_normalised_as_whispers_is(text):
    assert normalise(text) == EnglishTextNormalizer({})(text).strip()
    assert normalise(text, "English") == normalise(text)


@pytest.mark.parametrize("text", ENGLISH)
def test_spellings_are_those_of_the_checkpoint(refit, text):
    tokenizer = WhisperTokenizer.from_pretrained(refit)
    assert normalise(text, tokenizer=tokenizer) == tokenizer.normalize(text).strip()
    assert normalise("colour", tokenizer=tokenizer) == "color"
    assert normalise("colour") == "colour"


@pytest.mark.parametrize("text", ["Où est l'été ?", "Straße <br> (leise) 3,5", "¿Qué?", *ENGLISH])
def test_other_languages_lose_case_and_marks(text):
    assert normalise(text, "fr") == BasicTextNormalizer()(text).strip()


def test_characters_are_words_where_there_are_no_spaces():
    assert normalise("你好，世界", "zh") == "你 好 世 界"
    assert wer("你好世界", "你们世界", normaliser("chinese")) == 1 / 4


def test_a_normaliser_may_be_kept():
    assert normaliser("en") is normaliser("english")
    with pytest.raises(LanguageError):
        normaliser("klingon")


# --- Counting


@given(pairs)
@settings(deadline=None)
def test_rates_are_jiwers(texts):
    said, heard = (list(side) for side in zip(*texts, strict=True))
    assume(any(said))  # or jiwer gives the number of insertions for a rate
    assert wer(said, heard) == jiwer.wer(said, heard)
    assert cer(said, heard) == jiwer.cer(said, heard)


@given(pairs)
@settings(deadline=None)
def test_counts_add_up(texts):
    said, heard = (list(side) for side in zip(*texts, strict=True))
    counts = count_word_errors(said, heard)
    assert counts.said == sum(len(text.split()) for text in said)
    assert counts.hits + counts.substitutions + counts.insertions == sum(
        len(text.split()) for text in heard
    )
    each = [count_word_errors(*pair) for pair in texts]
    assert counts.errors == sum(one.errors for one in each)


def test_every_kind_of_error_is_counted():
    counts = count_word_errors("the cat sat on it", "a cat on it too")
    assert counts == ErrorCounts(hits=3, substitutions=1, deletions=1, insertions=1)
    assert counts.rate == 3 / 5


def test_texts_are_compared_as_they_stand_without_a_normaliser():
    assert wer("Yes, sir.", "yes sir") == 1.0
    assert wer("Yes, sir.", "yes sir", normaliser("en")) == 0.0
    assert wer("one\ttwo\nthree", " one two  three ") == 0.0


def test_characters_are_counted_with_their_spaces():
    assert count_character_errors("a b", "ab") == ErrorCounts(2, 0, 1, 0)
    assert cer("A b!", "a b", normaliser("en")) == 0.0


@pytest.mark.parametrize("rate", [wer, cer])
def test_nothing_said(rate):
    assert rate("", "") == 0.0
    assert rate("", "boo") == float("inf")
    assert rate("boo", "") == 1.0
    assert rate(["", "boo"], ["boo", "boo"]) == 1.0
    assert count_word_errors("", "boo hoo") == ErrorCounts(0, 0, 0, insertions=2)


@pytest.mark.parametrize(("said", "heard"), [(["a"], ["a", "b"]), (["a", "b"], "a"), ([], [])])
def test_texts_that_do_not_pair_up_are_refused(said, heard):
    with pytest.raises(WordErrorsError, match="one heard for each said"):
        wer(said, heard)


def test_without_jiwer_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(WordErrorsError, match=r"pip install 'hooked_asr\[speech\]'"):
        wer("a", "a")


# --- Showing


@given(sentences, sentences)
@settings(deadline=None)
def test_rows_spell_out_both_texts(said, heard):
    rows = aligned(said, heard)
    assert " ".join(row.said for row in rows if row.said) == said
    assert " ".join(row.heard for row in rows if row.heard) == heard
    counts = count_word_errors(said, heard)
    kinds = [row.kind for row in rows]
    assert kinds.count("hit") == counts.hits
    assert kinds.count("substitution") == counts.substitutions
    assert kinds.count("deletion") == counts.deletions
    assert kinds.count("insertion") == counts.insertions


def test_words_that_belong_together_are_in_one_row():
    assert aligned("The cat sat", "the dog sat down", normaliser("en")) == [
        Difference("hit", "the", "the"),
        Difference("substitution", "cat", "dog"),
        Difference("hit", "sat", "sat"),
        Difference("insertion", None, "down"),
    ]
    assert aligned("a b", "b") == [Difference("deletion", "a", None), Difference("hit", "b", "b")]
