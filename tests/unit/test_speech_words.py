"""Tokens become words as in transformers, on every tokenizer there is."""

from pathlib import Path
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperTokenizer
from transformers.models.whisper import tokenization_whisper as reference

from hooked_asr.speech import (
    LanguageError,
    Word,
    WordsError,
    combine_into_words,
    has_spaces,
    language_code,
    word_spans,
)

NANO = Path(__file__).parents[2] / "hooked_asr" / "nano" / "checkpoint"

TEXTS = [
    " The cat sat.",
    ' "Hello," he said -- "it\'s 3.5% (well) ok?!"',
    " ¿Dónde está el niño? ¡Aquí!",
    " Übermäßig naïve, €20.",
    "你好，世界。今天天气很好！",
    "こんにちは、世界「日本」。",
    " สวัสดีชาวโลก",
    " 👩‍👩‍👧 and 🎉🎉!",
    " - [music] {noise} - ",
    "no space. at the start",
    " ( ' \" ) , . ",
    "",
]
LANGUAGES = ["en", "english", "de", "zh", "chinese", "ja", "th", "yue", None]


@pytest.fixture(scope="module")
def nano():
    return WhisperTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module", params=["nano", "trained"])
def tokenizer(request):
    if request.param == "nano":
        return request.getfixturevalue("nano")
    return WhisperTokenizer.from_pretrained(request.getfixturevalue("refit"))


def times_of(n_tokens):
    starts = 0.5 * torch.arange(n_tokens, dtype=torch.float64)
    return torch.stack([starts, starts + 0.5], dim=-1)


def their_words(tokenizer, tokens, language):
    """Text and indices of each word; the reference knows languages by name alone."""
    name = language and reference.LANGUAGES.get(language, language)
    words, _, indices = reference._combine_tokens_into_words(tokenizer, list(tokens), name)
    return list(zip(words, indices, strict=True))


def our_words(tokenizer, tokens, language):
    spans = word_spans(tokenizer, tokens, language)
    return [(text, list(range(start, stop))) for text, start, stop in spans]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_transformers(tokenizer, text, language):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    ours = our_words(tokenizer, tokens, language)
    assert ours == their_words(tokenizer, tokens, language)
    assert "".join(word for word, _ in ours) == text


@given(data=st.data(), language=st.sampled_from(LANGUAGES))
@settings(deadline=None, max_examples=150)
def test_words_of_any_tokens_are_transformers(nano, data, language):
    """Bytes that are no characters, marks next to marks, special tokens and time stamps too."""
    marks = [nano.encode(mark, add_special_tokens=False) for mark in [' "', ".", ",", " -", " ("]]
    token = st.integers(0, len(nano) - 1) | st.sampled_from([tokens[-1] for tokens in marks])
    tokens = data.draw(st.lists(token, max_size=20))
    assert our_words(nano, tokens, language) == their_words(nano, tokens, language)


def test_a_word_has_the_times_of_its_tokens(tokenizer):
    text = ' "Unbelievably," she said.'
    tokens = tokenizer.encode(text, add_special_tokens=False)
    probabilities = torch.linspace(0.1, 0.9, len(tokens)).tolist()
    words = combine_into_words(tokenizer, tokens, times_of(len(tokens)), probabilities)
    assert [word.text for word in words] == [' "Unbelievably,"', " she", " said."]
    assert sum((word.tokens for word in words), ()) == tuple(tokens)
    done = 0
    for word in words:
        mean = fmean(probabilities[done : done + len(word.tokens)])
        assert word.start == 0.5 * done
        done += len(word.tokens)
        assert word.end == 0.5 * done
        assert word.probability == pytest.approx(mean)


def test_words_without_probabilities(nano):
    tokens = nano.encode(" hi", add_special_tokens=False)
    (word,) = combine_into_words(nano, tokens, times_of(len(tokens)))
    assert word == Word(" hi", 0.0, 0.5 * len(tokens), tuple(tokens))
    assert word.probability is None


def test_no_tokens_are_no_words(nano):
    assert combine_into_words(nano, [], times_of(0)) == []


def test_the_tokenizers_own_language_counts(refit):
    tokenizer = WhisperTokenizer.from_pretrained(refit, language="japanese", task="transcribe")
    tokens = tokenizer.encode("こんにちは", add_special_tokens=False)
    assert len(word_spans(tokenizer, tokens)) == len(word_spans(tokenizer, tokens, "ja")) > 1


@pytest.mark.parametrize(
    ("n_times", "n_probabilities"), [(2, None), (4, None), (3, 2), (3, 4), (0, None)]
)
def test_lengths_that_differ_are_refused(nano, n_times, n_probabilities):
    probabilities = None if n_probabilities is None else [0.5] * n_probabilities
    with pytest.raises(WordsError, match="3 tokens"):
        combine_into_words(nano, [5, 6, 7], times_of(n_times), probabilities)


def test_a_language_that_whisper_lacks_is_refused(nano):
    with pytest.raises(LanguageError, match="klingon"):
        word_spans(nano, [5], "klingon")


@pytest.mark.parametrize(("code", "name"), reference.LANGUAGES.items())
def test_languages_are_whispers(code, name):
    assert language_code(code) == language_code(name) == language_code(name.title()) == code
    unspaced = {"chinese", "japanese", "thai", "lao", "myanmar", "cantonese"}
    assert has_spaces(code) == has_spaces(name) == (name not in unspaced)
