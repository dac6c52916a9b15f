"""Phonemes against dictionaries' transcriptions, and error rates against jiwer's."""

import math
import random
import sys

import jiwer
import phonemizer
import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from hooked_asr.lenses import PhonemeError, phoneme_error_rate, phonemes, to_phonemes
from hooked_asr.lenses.phonemes import distance_rate
from hooked_asr.speech import LanguageError


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "thought", "θ ɔː t"),
        ("english", " church", "tʃ ɜː tʃ"),
        ("de", "Straße", "ʃ t ɾ ɑː s ə"),
        ("fr", "oiseau", "w a z o"),
        ("fr", "football", "f ʊ t b ɔː l"),  # in English, and no word of it
        ("es", "perro", "p e r o"),
        ("no", "hei", "h aɪ"),
        ("zh", "好", "χ ɑu2"),
        ("yue", "好", "h ou2"),
        ("ja", "カ", "k ä"),
        ("ru", "привет", "p rʲ i vʲ e t"),
        ("ko", "안", "ɐ n"),
    ],
)
def test_words_sound_as_dictionaries_have_them(language, text, expected):
    assert to_phonemes([text], language) == [expected.split()]


def test_many_texts_answer_to_the_one_by_one():
    texts = ["cat", "...", "two words", "", "don't", "a\nb", "ние", "42"]
    together = to_phonemes(texts, "en")
    assert together == [to_phonemes([text], "en")[0] for text in texts]
    assert [len(one) for one in together] == [3, 0, 6, 0, 4, 3, 0, 6]


def test_letters_that_would_be_named_are_not_read():
    assert to_phonemes(["中", "ние", "の", "한"], "en") == [[], [], [], []]
    assert to_phonemes(["今日", "the ние"], "ja") == [[], []]
    (latin,) = to_phonemes(["the"], "ru")
    assert latin == ["ð", "ə"]


# A greeting in each language that has a script of its own.
GREETINGS = """
am ሰላም | ar مرحبا | as নমস্কাৰ | ba сәләм | be дзякуй | bg здравей | bn নমস্কার | el γεια | fa سلام
gu નમસ્તે | he שלום | hi नमस्ते | hy բարեւ | ja こんにちは | ka გამარჯობა | kk сәлем
kn ನಮಸ್ಕಾರ | ko 안녕 | ml നമസ്കാരം
mk здраво | mr नमस्कार | my မင်္ဂလာပါ | ne नमस्ते | pa ਸਤ | ru привет | sd سلام
si ආයුබෝවන් | sr здраво | ta வணக்கம் | te నమస్కారం | th สวัสดี | tt сәлам | uk дякую | ur سلام | yue 你好
zh 你好 | ja カメラ
"""


def test_languages_are_read_in_their_own_script():
    greetings = [line.split() for line in GREETINGS.replace("|", "\n").strip().splitlines()]
    own_script = {code for codes in phonemes._SCRIPTS.values() for code in codes}
    assert {code for code, _ in greetings} == own_script
    for code, text in greetings:
        (found,) = to_phonemes([text], code)
        # The letters' names would take more phonemes.
        assert 0 < len(found) <= 3 * len(text), code


def test_languages_without_a_voice_have_no_phonemes():
    silent = {
        code for code in LANGUAGES if phonemes._VOICES.get(code, code) not in phonemes._voices()
    }
    assert " ".join(sorted(silent)) == (
        "bo br gl ha jw km ln lo mg mn nn oc ps sa sn so su tg tl yi yo"
    )
    with pytest.warns(UserWarning, match=r"does not speak galician \('gl'\)") as told:
        assert to_phonemes(["casa", "can"], "gl") == [[], []]
    assert len(told) == 1
    with pytest.raises(LanguageError, match="klingon"):
        to_phonemes(["casa"], "klingon")


def test_error_rates_by_hand():
    assert phoneme_error_rate("cat", "cat") == phoneme_error_rate("write", "right") == 0
    assert phoneme_error_rate("cat", "cut") == pytest.approx(1 / 3)
    assert phoneme_error_rate("cat", "cats") == pytest.approx(1 / 3)
    assert phoneme_error_rate("cats", "cat") == pytest.approx(1 / 4)
    assert phoneme_error_rate("a", "elephant") > 1
    assert phoneme_error_rate("rot", "Rad", "de") != phoneme_error_rate("rot", "Rad", "en")
    assert math.isnan(phoneme_error_rate("cat", "..."))
    assert math.isnan(phoneme_error_rate("...", "cat"))
    assert phoneme_error_rate("abcd", "abc", phonemes=lambda texts, _: [*map(list, texts)]) == 0.25


def test_error_rates_are_jiwers():
    rng = random.Random(0)
    for _ in range(300):
        said, heard = (rng.choices("abcd", k=rng.randint(1, 9)) for _ in range(2))
        assert distance_rate(said, heard) == pytest.approx(
            jiwer.wer(" ".join(said), " ".join(heard))
        )


@pytest.fixture
def forgotten():
    """What was found out of espeak-ng, forgotten before and after."""
    for one in (phonemes._voices, phonemes._backend):
        one.cache_clear()
    yield
    for one in (phonemes._voices, phonemes._backend):
        one.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_without_phonemizer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonemizer.backend", None)
    with pytest.raises(PhonemeError, match=r"hooked_asr\[phonemes\].*phonemes="):
        to_phonemes(["cat"], "en")


@pytest.mark.usefixtures("forgotten")
def test_without_espeak_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PHONEMIZER_ESPEAK_LIBRARY", str(tmp_path / "none.so"))
    wrapper = phonemizer.backend.espeak.wrapper.EspeakWrapper
    monkeypatch.setattr(wrapper, "_ESPEAK_LIBRARY", None)
    with pytest.raises(PhonemeError, match=r"none\.so.*hooked_asr\[phonemes\]"):
        to_phonemes(["cat"], "en")
