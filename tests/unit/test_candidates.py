"""Candidates beside the final token: phonemizer, jiwer and PyTorch's cosine, cell by cell."""

import itertools
import json
import math
from collections import Counter

import jiwer
import numpy as np
import pandas as pd
import phonemizer
import pytest
import tiny
import tiny_checkpoint
import tiny_qwen2
import tiny_qwen2_checkpoint
import torch

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.lenses import (
    CandidateSimilarity,
    LensError,
    LogitLens,
    candidate_similarity,
    logit_lens,
    phoneme_error_rate,
    to_phonemes,
)
from hooked_asr.patching.saving import ResultError
from hooked_asr.speech import LanguageError

NAN = math.nan


def similar(model, lens, **options):
    return candidate_similarity(model, lens, progress=False, **options)


def lens_of(model, top, final, tokens=None, real=None):
    """A lens made by hand: `top` `[site batch pos top]`, `final` `[batch pos]`."""
    top, final = torch.tensor(top), torch.tensor(final)
    real = torch.ones(final.shape, dtype=torch.bool) if real is None else torch.tensor(real)
    tokens = torch.zeros_like(final) if tokens is None else torch.tensor(tokens)
    ids = sorted({*top.unique().tolist(), *final.unique().tolist()} - {-1})
    zeros = torch.zeros(top.shape[:3])
    return LogitLens(
        sites=[f"decoder.{layer}.hook_resid_post" for layer in range(len(top))],
        positions=list(range(final.shape[1])),
        tokens=tokens,
        real=real,
        top_tokens=top,
        top_probs=torch.zeros(top.shape),
        entropy=zeros,
        kl=zeros,
        final_tokens=final,
        final_rank=zeros,
        final_prob=zeros,
        ahead_rank=zeros[..., None],
        ahead_prob=zeros[..., None],
        model=model.name,
        name="logit lens",
        texts=dict(zip(ids, model.to_str_tokens(ids), strict=True)) if model.tokenizer else {},
    )


def cosine(matrix, a, b):
    return torch.cosine_similarity(matrix[a].double(), matrix[b].double(), dim=0).item()


@pytest.fixture(scope="module")
def nano():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def lettered(tmp_path_factory):
    """A tiny Whisper of English alone, whose tokens are letters and a few words."""
    folder = tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("tiny"))
    return HookedWhisper.from_pretrained(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tiny_qwen2_checkpoint.save_checkpoint(tmp_path_factory.mktemp("qwen"))
    return HookedQwen2Audio.from_pretrained(folder)


@pytest.fixture
def ids(nano):
    """Tokens of whisper-nano by what they are."""
    texts = dict(enumerate(nano.to_str_tokens(list(range(nano.config.d_vocab)))))
    return {
        "part of a character": next(i for i, text in texts.items() if "\ufffd" in text),
        "time": nano.config.d_vocab - 1,
        "end": nano.to_single_token("<|endoftext|>"),
        "language": nano.to_single_token("<|de|>"),
        "full stop": nano.to_single_token("."),
        "space": nano.to_single_token(" "),
    }


# --- Every cell, one by one -----------------------------------------------------------------------


def slow_rate(said, heard, voice):
    """Of two texts, by phonemizer's own function and jiwer."""
    separator = phonemizer.separator.Separator(phone=" ", word="| ")
    spoken = [
        phonemizer.phonemize(text, voice, "espeak", separator, strip=True).replace("|", "")
        for text in (said, heard)
    ]
    return jiwer.wer(*(" ".join(text.split()) for text in spoken))


@pytest.mark.usefixtures("unchecked")
def test_every_cell_of_a_run_is_phonemizers_and_torchs(lettered):
    mel, tokens = tiny.inputs(lettered, batch=2, n_pos=4)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    run = {"mel": mel, "tokens": tokens, "attention_mask": mask}
    lens = logit_lens(lettered, run, top_k=6, at=["resid_mid", "resid_post"], progress=False)
    found = similar(lettered, lens, language=["en", "de"])
    with torch.no_grad():
        embedding = lettered.embed.weight
        seen = Counter()
        for site, clip, pos, top in itertools.product(*map(range, lens.top_tokens.shape)):
            at = (site, clip, pos, top)
            if not mask[clip, pos]:
                assert found.per[at].isnan()
                assert found.cosine[at].isnan()
                assert not found.words[at]
                continue
            candidate, final = lens.top_tokens[at].item(), lens.final_tokens[clip, pos].item()
            assert found.cosine[at].item() == pytest.approx(
                cosine(embedding, candidate, final), abs=1e-6
            )
            texts = lettered.to_str_tokens([final, candidate])
            words = all(any(map(str.isalpha, text)) and "<" not in text for text in texts)
            assert found.words[at] == words
            if words:
                expected = slow_rate(*texts, ("en-us", "de")[clip])
                assert found.per[at].item() == pytest.approx(expected)
            assert found.per[at].isnan() == (not words)
            seen[clip, words] += 1
    assert min(seen[clip, words] for clip in (0, 1) for words in (True, False)) > 3


def test_the_embedding_is_the_tokens_own_and_not_what_unembeds(qwen):
    run = tiny_qwen2_checkpoint_run(qwen)
    lens = logit_lens(qwen, run, progress=False)
    found = similar(qwen, lens, language="en")
    at = tuple((~found.is_final & lens.real[..., None]).nonzero()[0].tolist())
    pair = lens.top_tokens[at].item(), lens.final_tokens[at[1:3]].item()
    assert found.cosine[at].item() == pytest.approx(cosine(qwen.W_E.detach(), *pair), abs=1e-6)
    assert abs(cosine(qwen.W_E.detach(), *pair) - cosine(qwen.W_U.detach().T, *pair)) > 0.01
    assert found.languages == ["en"] * len(lens.tokens)


def tiny_qwen2_checkpoint_run(model):
    sounds = [torch.randn(8000, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    return model.to_inputs(sounds, ["a cat", "a"])


def test_a_model_without_a_tokenizer_has_cosines_alone():
    model = tiny_qwen2.hooked("deep")
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["left_padded"])
    lens = logit_lens(model, run, progress=False)
    found = similar(model, lens)
    padding = ~lens.real[..., None].expand_as(found.cosine)
    assert padding.any()
    assert found.per.isnan().all()
    assert torch.equal(found.cosine.isnan(), padding)
    assert torch.equal(found.words, ~padding)
    assert (found.by_layer().per_pairs == 0).all()
    assert len(found.plot().hconcat) == 1
    for wrong in ({"embeddings": torch.zeros}, {"phonemes": to_phonemes}):
        with pytest.raises(LensError, match="no tokenizer"):
            similar(model, lens, **wrong)


# --- Tokens by hand -------------------------------------------------------------------------------


def test_tokens_that_are_no_words(nano, ids):
    token = nano.to_single_token
    candidates = [token(" Hut"), token(" hat"), *ids.values()]
    lens = lens_of(nano, [[[candidates, candidates]]], [[token(" Hut"), ids["full stop"]]])
    found = similar(nano, lens, language="de")
    assert to_phonemes(["Hut", "hat"], "de") == [["h", "uː", "t"], ["h", "a", "t"]]
    torch.testing.assert_close(
        found.per[0, 0, 0], torch.tensor([0, 1 / 3] + [NAN] * len(ids)), equal_nan=True
    )
    assert found.words[0, 0, 0].tolist() == [True, True] + [False] * len(ids)
    assert found.per[0, 0, 1].isnan().all()
    assert not found.words[0, 0, 1].any()
    assert found.is_final[0, 0, 0].tolist() == [True, *[False] * (len(ids) + 1)]
    assert not found.cosine.isnan().any()
    assert found.cosine[0, 0, 0, 0] == pytest.approx(1)


def test_the_language_is_read_from_the_prompt(nano, lettered, qwen):
    token = nano.to_single_token
    final, other = token(" Hut"), token(" hat")
    start, write = token("<|startoftranscript|>"), token("<|transcribe|>")
    rows = [[start, token(f"<|{code}|>"), write] for code in ("es", "de")]
    rows.append([start, token("<|de|>"), token("<|translate|>")])  # into English
    tops = [[[[other]] * 3] * 3]
    found = similar(nano, lens_of(nano, tops, [[final] * 3] * 3, rows))
    assert found.languages == ["es", "de", "en"]
    for clip, code in enumerate(found.languages):
        expected = phoneme_error_rate("Hut", "hat", code)
        assert found.per[0, clip, 0, 0] == pytest.approx(expected)
    assert set(found.phonemes) == {"es", "de", "en"}
    assert similar(lettered, lens_of(lettered, [[[[1]]]], [[2]])).languages == ["en"]
    unsaid = lens_of(nano, [[[[other]]]], [[final]])
    with pytest.raises(LensError, match="clip 0"):
        similar(nano, unsaid)
    with pytest.raises(LensError, match="language='en'"):
        similar(qwen, lens_of(qwen, [[[[1]]]], [[2]]))
    with pytest.raises(LensError, match="1 clips; got 2 languages"):
        similar(nano, unsaid, language=["en", "de"])
    with pytest.raises(LanguageError, match="elvish"):
        similar(nano, unsaid, language="elvish")


def test_a_language_without_a_voice_warns_once_and_keeps_cosines(nano):
    tokens = [nano.to_single_token(text) for text in (" Hut", " hat")]
    lens = lens_of(nano, [[[tokens]] * 2], [tokens[:1]] * 2)
    with pytest.warns(UserWarning, match="does not speak lao") as told:
        found = similar(nano, lens, language="lo")
    assert len(told) == 1
    assert found.per.isnan().all()
    assert not found.cosine.isnan().any()
    assert found.words.all()


def test_ones_own_phonemes_and_embeddings(nano, ids):
    asked = []

    def letters(texts, language):
        asked.append((texts, language))
        return [list(text) for text in texts]

    def lengths(texts):
        asked.append(texts)
        return np.array([[len(text), 1.0] for text in texts])

    hut, hat = (nano.to_single_token(text) for text in (" Hut", " hat"))
    stop = ids["full stop"]
    lens = lens_of(nano, [[[[hut, hat, stop], [hut, hat, stop]]]] * 2, [[hut, hat]])
    found = similar(nano, lens, language="lao", phonemes=letters, embeddings=lengths)
    assert asked == [(["Hut", "hat"], "lo"), ["Hut", "hat"]]
    assert found.per[1, 0].nan_to_num(-1).tolist() == [
        pytest.approx([0, 2 / 3, -1]),
        pytest.approx([2 / 3, 0, -1]),
    ]
    torch.testing.assert_close(found.cosine[0, 0], torch.tensor([[1, 1, NAN]] * 2), equal_nan=True)
    with pytest.raises(LensError, match="1 lists for 2 texts"):
        similar(nano, lens, language="en", phonemes=lambda texts, _: [["a"]])
    with pytest.raises(LensError, match=r"\[2, d\]"):
        similar(nano, lens, language="en", embeddings=lambda texts: torch.zeros(3, 4))


def test_a_lens_of_another_model_is_refused(nano, lettered, qwen):
    tokens = [nano.to_single_token(text) for text in (" Hut", " hat")]
    with pytest.raises(LensError, match="has 64 tokens"):
        similar(lettered, lens_of(nano, [[[tokens]]], [tokens[:1]]))
    token = qwen.to_single_token(" a")
    with pytest.raises(LensError, match=rf"token {token} is ' a'; that of whisper-nano is"):
        similar(nano, lens_of(qwen, [[[[token]]]], [[token]]), language="en")


def test_a_lens_of_padding_alone_has_nothing(nano):
    found = similar(nano, lens_of(nano, [[[[-1]]]], [[-1]], real=[[False]]), language="en")
    assert found.per.isnan().all()
    assert found.to_pandas().empty
    with pytest.raises(ResultError, match="nothing to draw"):
        found.plot()


# --- Results --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(nano):
    shape = (2, nano.config.front_end.n_mels, nano.config.n_frames)
    mel = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tokens = nano.to_tokens(["Mein Hut ist blau.", "Der Mann hat drei Hut."], language="de")
    lens = logit_lens(nano, (mel, tokens), at=["resid_mid", "resid_post"], progress=False)
    return similar(nano, lens)


def test_means_by_layer_are_those_of_the_table(found):
    table = found.to_pandas()
    for include_final in (True, False):
        kept = table[table.words & (include_final | ~table.is_final)]
        groups = kept.groupby(["layer", "at"])
        means = found.by_layer(include_final).set_index(["layer", "at"]).sort_index()
        for name in ("per", "cosine"):
            np.testing.assert_allclose(means[name], groups[name].mean(), rtol=1e-5)
            assert means[f"{name}_pairs"].tolist() == groups[name].count().tolist()
    assert found.by_layer()["at"].tolist() == ["resid_mid", "resid_post"] * 4
    assert (found.by_layer().per_pairs > found.by_layer(include_final=False).per_pairs).any()


def test_the_table_has_a_row_for_each_pair(found):
    table = found.to_pandas()
    assert len(table) == found.per.numel()
    row = table[table.words & ~table.is_final].iloc[0]
    assert row.candidate_phonemes.split() == to_phonemes([row.candidate], "de")[0]
    assert row.per == pytest.approx(phoneme_error_rate(row.final, row.candidate, "de"))
    assert sorted(table["rank"].unique()) == [1, 2, 3, 4, 5]


def test_tables_figures_and_files(found, tmp_path):
    panels = found.plot().to_dict()["hconcat"]
    for name, panel in zip(("per", "cosine"), panels, strict=True):
        title = panel["hconcat"][0]["encoding"]["y"]["title"]
        for include_final, line in ((True, "all candidates"), (False, "without the final token")):
            drawn = [
                point[title]
                for point in panel["data"]["values"]
                if point["line"] == f"resid_post, {line}"
            ]
            means = found.by_layer(include_final)
            assert drawn == means[means["at"] == "resid_post"][name].tolist()
    for suffix in (".csv", ".html", ".png", ".json"):
        found.save(tmp_path / f"found{suffix}")
        assert (tmp_path / f"found{suffix}").stat().st_size > 500
    again = CandidateSimilarity.load(tmp_path / "found.json")
    pd.testing.assert_frame_equal(again.to_pandas(), found.to_pandas())
    (tmp_path / "other.json").write_text(json.dumps({"sites": []}))
    with pytest.raises(ResultError, match="no saved candidate similarity"):
        CandidateSimilarity.load(tmp_path / "other.json")
    with pytest.raises(ResultError, match=r"found\.txt"):
        found.save(tmp_path / "found.txt")
