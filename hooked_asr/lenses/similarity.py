"""How alike the candidates of each layer sound and mean to what the model ends with.

Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025): the phoneme error rate
of a logit lens's candidates falls with depth, the cosine of their embeddings rises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.phonemes import Phonemes, distance_rate, is_word, to_phonemes
from hooked_asr.lenses.similarity_languages import Languages, languages_of
from hooked_asr.lenses.similarity_result import CandidateSimilarity

Embeddings = Callable[[list[str]], Float[Tensor, "text d"]]

_CONTROL = re.compile(r"<\|[^|]*\|>")  # as Whisper and Qwen2 write all of theirs
_CHUNK = 2**14  # pairs of embeddings that are compared at a time


@torch.no_grad()
def candidate_similarity(
    model: Any,
    lens: LogitLens,
    *,
    language: Languages = None,
    phonemes: Phonemes | None = None,
    embeddings: Embeddings | None = None,
    progress: bool = True,
) -> CandidateSimilarity:
    """Each candidate of a logit lens beside the final token: in phonemes, and in embeddings.

        found = candidate_similarity(model, logit_lens(model, (mel, tokens)))
        found.plot(), found.by_layer(include_final=False)

    - `lens`: of this model. Its `pos_slice` leaves out positions that are no transcript, such as
      the words of a Qwen2-Audio prompt.
    - `language`: that of the transcripts, one of Whisper's by code or English name, or one for each
      clip. None reads it from a multilingual Whisper's prompt (English where that says to
      translate); it is English where Whisper speaks no other, and has to be said for other models.
    - `phonemes`: a grapheme-to-phoneme, `phonemes(texts, language)`, with a list of phonemes for
      each text; by default espeak-ng's, as `to_phonemes` tells. Each text is converted once,
      without the spaces around it; pieces of words as they stand.
    - `embeddings`: `embeddings(texts)`, `[text d]`, in place of the model's own token embedding.

    Where there is no word on either side (special tokens, time stamps, punctuation, parts of
    characters), or one that has no phonemes, `per` is NaN; so is the cosine of embeddings of
    texts, while the model's own are compared for all tokens. A candidate that is the final token
    counts, with a rate of 0 and a cosine of 1; `is_final` and `by_layer` tell it from the others.

    A model without a tokenizer has cosines of its own embedding alone.

    Raises `LensError` for a lens of another model, a language that is not told, or phonemes or
    embeddings that do not answer to the texts; `LanguageError` for a language unknown to Whisper;
    `PhonemeError` where phonemizer (`hooked_asr[phonemes]`) or espeak-ng is missing.
    """
    texts = _texts(model, lens)
    if not texts and (phonemes or embeddings):
        raise LensError(
            f"{model.name} has no tokenizer, and so no texts for phonemes() or embeddings(): leave "
            "them out, and its own token embedding is compared"
        )
    languages = languages_of(model, lens, language) if texts else [""] * len(lens.tokens)
    words = _words(model, texts)
    pairs = _Pairs.of(lens, languages)
    sounds = _sounds(pairs, words, phonemes or to_phonemes) if texts else {}
    cosine = _own_cosine(model, pairs) if embeddings is None else _cosine(embeddings, pairs, words)
    both = [not texts or (a in words and b in words) for a, b in pairs.tokens]
    return CandidateSimilarity(
        sites=lens.sites,
        positions=lens.positions,
        real=lens.real,
        top_tokens=lens.top_tokens,
        final_tokens=lens.final_tokens,
        per=pairs.spread(_rates(pairs, words, sounds, progress)),
        cosine=pairs.spread(cosine),
        words=pairs.spread(torch.tensor(both, dtype=torch.float)) == 1,
        languages=languages,
        model=lens.model,
        texts=texts,
        phonemes=sounds,
    )


# --- What there is to compare ---------------------------------------------------------------------


def _texts(model: Any, lens: LogitLens) -> dict[int, str]:
    """The text of each candidate and final token; nothing where nobody has a tokenizer."""
    ids = sorted({*lens.top_tokens.unique().tolist(), *lens.final_tokens.unique().tolist()} - {-1})
    if ids and ids[-1] >= model.config.d_vocab:
        raise LensError(
            f"the lens is of {lens.model} and has token {ids[-1]}; {model.name} has "
            f"{model.config.d_vocab} tokens"
        )
    if model.tokenizer is None:
        return {token: lens.texts[token] for token in ids if token in lens.texts}
    texts = dict(zip(ids, model.to_str_tokens(ids), strict=True))
    differ = [token for token in ids if lens.texts.get(token, texts[token]) != texts[token]]
    if differ:
        token = differ[0]
        raise LensError(
            f"the lens is of {lens.model}, whose token {token} is {lens.texts[token]!r}; that of "
            f"{model.name} is {texts[token]!r}"
        )
    return texts


def _words(model: Any, texts: dict[int, str]) -> dict[int, str]:
    """The words, and pieces of words, among the tokens; without the spaces around them."""
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    return {
        token: text.strip()
        for token, text in texts.items()
        if token not in special and is_word(text) and not _CONTROL.fullmatch(text)
    }


@dataclass(frozen=True)
class _Pairs:
    """Every different pair of a candidate and a final token in a language, and where it occurs.

    - `languages`, `tokens`: of each pair; the candidate, then the final token.
    - `where`: the pair at each place, and one past the last where there is padding.
    """

    languages: list[str]
    tokens: list[tuple[int, int]]
    where: Int[Tensor, "site batch pos top"]

    @classmethod
    def of(cls, lens: LogitLens, languages: Sequence[str]) -> _Pairs:
        distinct = sorted(set(languages))
        codes = torch.tensor([distinct.index(one) for one in languages])[:, None, None]
        base = int(max(lens.top_tokens.max(), lens.final_tokens.max())) + 1
        keys = (codes * base + lens.top_tokens.long()) * base + lens.final_tokens[..., None].long()
        real = lens.real[..., None].expand_as(keys)
        found, where = keys[real].unique(return_inverse=True)
        places = torch.full_like(keys, len(found))
        places[real] = where
        pairs = [divmod(key, base) for key in found.tolist()]
        own = [distinct[above // base] for above, _ in pairs]
        return cls(own, [(above % base, final) for above, final in pairs], places)

    def spread(self, values: Float[Tensor, " pair"]) -> Float[Tensor, "site batch pos top"]:
        """A number for each pair to all its places; NaN at padding."""
        return torch.cat([values, values.new_full((1,), float("nan"))])[self.where]

    @property
    def ids(self) -> list[int]:
        return sorted({token for pair in self.tokens for token in pair})


# --- How they sound -------------------------------------------------------------------------------


def _sounds(
    pairs: _Pairs, words: dict[int, str], convert: Phonemes
) -> dict[str, dict[str, list[str]]]:
    """Language -> text -> phonemes, of all words that occur in the language."""
    texts: dict[str, set[str]] = {}
    for language, tokens in zip(pairs.languages, pairs.tokens, strict=True):
        texts.setdefault(language, set()).update(words[one] for one in tokens if one in words)
    return {language: _of_texts(sorted(own), language, convert) for language, own in texts.items()}


def _of_texts(texts: list[str], language: str, convert: Phonemes) -> dict[str, list[str]]:
    found = convert(texts, language) if texts else []
    if len(found) != len(texts):
        raise LensError(
            f"phonemes() gave {len(found)} lists for {len(texts)} texts; it is to give one for "
            "each, empty where a text has no phonemes"
        )
    return dict(zip(texts, map(list, found), strict=True))


def _rates(
    pairs: _Pairs,
    words: dict[int, str],
    sounds: dict[str, dict[str, list[str]]],
    progress: bool,
) -> Float[Tensor, " pair"]:
    """The phoneme error rate of each pair's candidate to its final token."""
    both = list(zip(pairs.languages, pairs.tokens, strict=True))
    rates = []
    for language, tokens in tqdm(both, desc="phonemes", unit="pair", disable=not progress):
        heard, said = (sounds.get(language, {}).get(words.get(one, ""), []) for one in tokens)
        rates.append(distance_rate(said, heard))
    return torch.tensor(rates, dtype=torch.float)


# --- What they mean -------------------------------------------------------------------------------


def _own_cosine(model: Any, pairs: _Pairs) -> Float[Tensor, " pair"]:
    ids = torch.tensor(pairs.ids, dtype=torch.long, device=model.W_E.device)
    return _compared(model.W_E[ids], dict(zip(pairs.ids, range(len(ids)), strict=True)), pairs)


def _cosine(embeddings: Embeddings, pairs: _Pairs, words: dict[int, str]) -> Float[Tensor, " pair"]:
    texts = sorted({words[token] for token in pairs.ids if token in words})
    if not texts:
        return torch.full((len(pairs.tokens),), float("nan"))
    vectors = torch.as_tensor(embeddings(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise LensError(
            f"embeddings() gave {list(vectors.shape)} for {len(texts)} texts; it is to give "
            f"[{len(texts)}, d]"
        )
    rows = {token: texts.index(words[token]) for token in pairs.ids if token in words}
    return _compared(vectors, rows, pairs)


def _compared(
    vectors: Float[Tensor, "row d"], rows: dict[int, int], pairs: _Pairs
) -> Float[Tensor, " pair"]:
    """The cosine of each pair's vectors; NaN where one of them is missing, or zero."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    unit = wide / wide.norm(dim=-1, keepdim=True)
    missing = unit.new_full((1, unit.shape[-1]), float("nan"))
    unit = torch.cat([unit, missing])
    places = [[rows.get(token, len(rows)) for token in pair] for pair in pairs.tokens]
    of_pairs = torch.tensor(places, dtype=torch.long, device=unit.device).view(-1, 2)
    chunks = [(unit[one[:, 0]] * unit[one[:, 1]]).sum(-1) for one in of_pairs.split(_CHUNK)]
    return torch.cat(chunks).float().cpu()
