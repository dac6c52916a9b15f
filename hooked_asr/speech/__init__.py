"""From a decoder's output to speech: times, words, loops, word errors, subtitles.

Arrays, tokens and texts in, the same out; nothing here knows a model. Times are in seconds.
"""

from hooked_asr.speech.alignment import row_times, token_salience, token_times
from hooked_asr.speech.alignment_heads import (
    AlignmentHead,
    alignment_scores,
    find_alignment_heads,
    rank_heads,
)
from hooked_asr.speech.dtw import AlignmentError, warping_path
from hooked_asr.speech.languages import LanguageError, has_spaces, language_code
from hooked_asr.speech.normalisers import normalise, normaliser
from hooked_asr.speech.repetition import (
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
from hooked_asr.speech.subtitles import SubtitleError, to_srt, to_vtt
from hooked_asr.speech.word_errors import (
    Difference,
    ErrorCounts,
    WordErrorsError,
    aligned,
    cer,
    count_character_errors,
    count_word_errors,
    wer,
)
from hooked_asr.speech.words import Word, WordsError, combine_into_words, word_spans

__all__ = [
    "MAX_TEXT_COMPRESSION",
    "MAX_TOKEN_COMPRESSION",
    "AlignmentError",
    "AlignmentHead",
    "Difference",
    "ErrorCounts",
    "LanguageError",
    "Loop",
    "RepetitionError",
    "SubtitleError",
    "Word",
    "WordErrorsError",
    "WordsError",
    "aligned",
    "alignment_scores",
    "cer",
    "combine_into_words",
    "compression_ratio",
    "count_character_errors",
    "count_word_errors",
    "find_alignment_heads",
    "find_loops",
    "has_spaces",
    "is_looping",
    "language_code",
    "loop_share",
    "normalise",
    "normaliser",
    "rank_heads",
    "repeated_ngrams",
    "row_times",
    "to_srt",
    "to_vtt",
    "token_compression_ratio",
    "token_salience",
    "token_times",
    "warping_path",
    "wer",
    "word_spans",
]
