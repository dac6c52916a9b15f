"""A tiny Whisper as a checkpoint folder: weights, forty tokens of text, windows of one second."""

from pathlib import Path

from tiny import END, N_VOCAB, hf_whisper
from transformers import WhisperFeatureExtractor, WhisperTokenizer

_MERGES = [
    *(("Ġ", letter) for letter in "ashinm"),
    *(("Ġa", "s"), ("Ġas", "k"), ("Ġi", "t"), ("Ġn", "o"), ("Ġh", "e"), ("Ġhe", "r"), ("Ġm", "e")),
]
# Ids 0 to 39 are text, then come the special tokens whose ids `tiny`'s generation rules name.
TEXT_TOKENS = ["Ġ", *"abcdefghijklmnopqrstuvwxyz", *map("".join, _MERGES)]
_SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|zh|>"),
    *("<|translate|>", "<|transcribe|>", "<|nospeech|>", "<|notimestamps|>"),
    *(f"<|{0.02 * step:.2f}|>" for step in range(14)),
]


def tiny_tokenizer() -> WhisperTokenizer:
    """Reads and writes lower-case letters; " ask", " it", " no", " her" and " me" are one token."""
    end, *others = _SPECIAL_TOKENS
    ids = {token: i for i, token in enumerate(TEXT_TOKENS)}
    tokenizer = WhisperTokenizer(vocab=ids, merges=_MERGES, unk_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    return tokenizer


def save_checkpoint(folder: Path, layout: str = "untied") -> Path:
    """Write the folder that `from_pretrained` reads.

    With untied embeddings the untrained model does not say its last token over and over.
    """
    model = hf_whisper(layout)
    # It is untrained, and would speak in special tokens: let it say text alone, and end.
    model.generation_config.suppress_tokens = list(range(END + 1, N_VOCAB))
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder
