"""Vocabularies from few sentences: drawing many is slow where every call's types are checked."""

import pytest

from hooked_asr.nano import tokenizer


@pytest.fixture(scope="package", autouse=True)
def few_sentences():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_SENTENCES", 300)
        yield
