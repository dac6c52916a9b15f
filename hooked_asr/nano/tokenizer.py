"""A byte-level BPE of the corpus's text, with Whisper's special tokens behind it."""

from __future__ import annotations

import json
import random

from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import GenerationConfig, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES

from hooked_asr.nano.clips import draw_sentence
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.voices import LANGUAGES

END, START, SILENT = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
PREVIOUS, NO_SPEECH = "<|startofprev|>", "<|nospeech|>"
TASKS = ("translate", "transcribe")
_SENTENCES = 20_000  # that the vocabulary is learned from, for each language


def train_tokenizer(recipe: Recipe) -> WhisperTokenizer:
    """Learn the vocabulary from the grammar: `text_vocabulary` tokens, then Whisper's own.

    Whisper's hundred languages all have their token, as `WhisperTokenizer` expects; the last ones
    are times, every 20 ms of the window.
    """
    rng = random.Random(f"{recipe.seed}/tokenizer")
    texts = [
        " " + draw_sentence(rng, language, evaluated=False).texts[language]
        for language in LANGUAGES
        for _ in range(_SENTENCES)
    ]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, recipe.text_vocabulary, min_frequency=2, show_progress=False)
    vocabulary = bpe.get_vocab()
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    special = [START, *(f"<|{code}|>" for code in WHISPER_LANGUAGES)]
    special += [f"<|{task}|>" for task in TASKS]
    special += ["<|startoflm|>", PREVIOUS, NO_SPEECH, SILENT]
    vocabulary[END] = len(vocabulary)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    times = [f"<|{20 * i / 1000:.2f}|>" for i in range(50 * recipe.seconds + 1)]
    tokenizer.add_tokens([AddedToken(time, special=False, normalized=False) for time in times])
    return tokenizer


def decoding_rules(recipe: Recipe, tokenizer: WhisperTokenizer) -> GenerationConfig:
    """Whisper's decoding rules over this vocabulary: prompts and suppressed tokens."""
    token = tokenizer.convert_tokens_to_ids
    end, start = token(END), token(START)
    never = [START, *(f"<|{task}|>" for task in TASKS), "<|startoflm|>", PREVIOUS, NO_SPEECH]
    return GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        prev_sot_token_id=token(PREVIOUS),
        no_timestamps_token_id=token(SILENT),
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={task: token(f"<|{task}|>") for task in TASKS},
        # A blank alone: Whisper's rules forbid the end there too, and so a transcript of nothing.
        begin_suppress_tokens=[token("Ġ")],
        suppress_tokens=[token(name) for name in never],
        max_initial_timestamp_index=50,
        max_length=recipe.n_tokens,
        return_timestamps=False,
    )
