"""Loops are found, all of them and no others; ratios are OpenAI's and Hugging Face's."""

import time
import zlib

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from hooked_asr.speech import (
    MAX_TEXT_COMPRESSION,
    MAX_TOKEN_COMPRESSION,
    Loop,
    RepetitionError,
    compression_ratio,
    find_loops,
    is_looping,
    loop_share,
    repeated_ngrams,
    token_compression_ratio,
)

# Few letters, so that loops are common, and runs of them, so that loops overlap.
letters = st.lists(st.sampled_from("ab"), max_size=30) | st.lists(
    st.text("abc", min_size=1, max_size=4).flatmap(
        lambda unit: st.integers(1, 5).map(lambda count: unit * count)
    ),
    max_size=6,
).map(lambda parts: [*"".join(parts)])


def slow_loops(sequence, min_repeats, max_unit):
    """By the definition: try every stretch and unit, keep the longest that are free."""
    n = len(sequence)

    def repeats(size, start, end):
        return all(sequence[i] == sequence[i - size] for i in range(start + size, end))

    found = []
    for size in range(1, max_unit + 1):
        for start in range(n):
            for end in range(start + size * min_repeats, n + 1):
                longer_left = start > 0 and repeats(size, start - 1, end)
                longer_right = end < n and repeats(size, start, end + 1)
                if repeats(size, start, end) and not longer_left and not longer_right:
                    unit = tuple(sequence[start : start + size])
                    found.append(Loop(unit, (end - start) // size, start, end))
    kept = []
    for loop in sorted(found, key=lambda x: (x.start - x.end, len(x.unit), x.start)):
        if all(loop.end <= other.start or other.end <= loop.start for other in kept):
            kept.append(loop)
    return sorted(kept, key=lambda loop: loop.start)


@given(letters, st.integers(2, 4), st.integers(1, 8))
@settings(deadline=None, max_examples=300)
def test_loops_are_those_of_the_definition(sequence, min_repeats, max_unit):
    assert find_loops(sequence, min_repeats, max_unit) == slow_loops(
        sequence, min_repeats, max_unit
    )


@given(
    before=st.lists(st.integers(10, 99), max_size=10),
    unit=st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True),
    count=st.integers(3, 6),
    cut=st.integers(0, 7),
    after=st.lists(st.integers(100, 199), max_size=10, unique=True),
)
@settings(deadline=None)
def test_a_planted_loop_is_found(before, unit, count, cut, after):
    assume(len(set(before)) == len(before))
    rest = unit[: cut % len(unit)]
    sequence = before + unit * count + rest + after
    start, end = len(before), len(before) + count * len(unit) + len(rest)
    assert find_loops(sequence) == [Loop(tuple(unit), count, start, end)]
    assert is_looping(sequence)
    assert loop_share(sequence) == (end - start) / len(sequence)


@given(st.lists(st.integers(), unique=True))
def test_what_never_comes_again_is_no_loop(sequence):
    assert find_loops(sequence) == []
    assert not is_looping(sequence)
    assert loop_share(sequence) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("aa", []),
        ("aaa", [("a", 3, 0, 3)]),
        ("aaaaaa", [("a", 6, 0, 6)]),  # not two by two
        ("abababa", [("ab", 3, 0, 7)]),  # the last one is cut off
        ("ababa", []),
        ("xabcabcabcy", [("abc", 3, 1, 10)]),
        ("aaabaaabaaab", [("aaab", 3, 0, 12)]),  # the longer of two over each other
        ("aaa-bbb", [("a", 3, 0, 3), ("b", 3, 4, 7)]),
    ],
)
def test_loops_of_letters(text, expected):
    assert find_loops(text) == [Loop(tuple(unit), *rest) for unit, *rest in expected]


def test_a_unit_may_be_no_longer_than_max_unit():
    sentence = list(range(12)) * 3
    assert find_loops(sequence=sentence, max_unit=11) == []
    assert len(find_loops(sequence=sentence, max_unit=12)) == 1


def test_a_whole_window_of_tokens_is_fast():
    tokens = [i % 17 for i in range(20)] + list(range(400)) * 2
    start = time.perf_counter()
    find_loops(tokens)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("options", [{"min_repeats": 1}, {"max_unit": 0}])
def test_loops_that_make_no_sense_are_refused(options):
    with pytest.raises(RepetitionError):
        find_loops("aaa", **options)


@pytest.mark.parametrize(
    ("words", "n", "share"),
    [("a b c", 1, 0.0), ("a a a a", 1, 0.75), ("a b a b", 2, 1 / 3), ("a", 2, 0.0), ("", 1, 0.0)],
)
def test_runs_of_words_that_came_before(words, n, share):
    assert repeated_ngrams(words.split(), n) == pytest.approx(share)


def test_runs_of_no_words_are_refused():
    with pytest.raises(RepetitionError):
        repeated_ngrams("abc", 0)


@given(st.text(min_size=1, max_size=300))
def test_compression_of_text_is_openais(text):
    data = text.encode("utf-8")
    assert compression_ratio(text) == len(data) / len(zlib.compress(data))


@given(st.lists(st.integers(0, 127), min_size=1, max_size=60), st.sampled_from([128, 1000, 51866]))
@settings(deadline=None)
def test_compression_of_tokens_is_hugging_faces(tokens, d_vocab):
    theirs = WhisperGenerationMixin._retrieve_compression_ratio(torch.tensor(tokens), d_vocab)
    assert token_compression_ratio(tokens, d_vocab) == theirs


def test_a_loop_passes_both_thresholds_and_speech_neither():
    speech = "And so my fellow Americans, ask not what your country can do for you."
    assert compression_ratio(speech) < MAX_TEXT_COMPRESSION < compression_ratio(speech * 10)
    tokens = [40 * i for i in range(30)]
    assert token_compression_ratio(tokens, 51865) < MAX_TOKEN_COMPRESSION
    assert token_compression_ratio(tokens * 10, 51865) > MAX_TOKEN_COMPRESSION


def test_nothing_is_not_compressed():
    assert compression_ratio("") == token_compression_ratio([], 51865) == 0.0


@pytest.mark.parametrize("token", [-1, 100])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(RepetitionError, match=f"no token {token}"):
        token_compression_ratio([1, token], 100)
