"""Lenses: what the streams inside a model already say, read by the model's own last steps."""

from hooked_asr.lenses.corpus import CorpusError, corpus_lens, encoder_corpus
from hooked_asr.lenses.corpus_result import CorpusClip, CorpusLens
from hooked_asr.lenses.cross_attention import cross_attention_lens
from hooked_asr.lenses.cross_attention_result import CrossAttentionLens
from hooked_asr.lenses.direct import direct_logit_attribution
from hooked_asr.lenses.direct_result import DirectAttribution
from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.lenses.encoder_inputs import EncoderLensError
from hooked_asr.lenses.encoder_result import ClipLens, EncoderLens, LayerTranscript
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.forced import ForcedRun, forced_run
from hooked_asr.lenses.logit import logit_lens
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.phonemes import PhonemeError, phoneme_error_rate, to_phonemes
from hooked_asr.lenses.saturation import saturation_layers
from hooked_asr.lenses.similarity import candidate_similarity
from hooked_asr.lenses.similarity_result import CandidateSimilarity
from hooked_asr.lenses.tuned import TunedLens, tuned_lens
from hooked_asr.lenses.tuned_training import train_tuned_lens

__all__ = [
    "CandidateSimilarity",
    "ClipLens",
    "CorpusClip",
    "CorpusError",
    "CorpusLens",
    "CrossAttentionLens",
    "DirectAttribution",
    "EncoderLens",
    "EncoderLensError",
    "ForcedRun",
    "LayerTranscript",
    "LensError",
    "LogitLens",
    "PhonemeError",
    "TunedLens",
    "candidate_similarity",
    "corpus_lens",
    "cross_attention_lens",
    "direct_logit_attribution",
    "encoder_corpus",
    "encoder_lens",
    "forced_run",
    "logit_lens",
    "phoneme_error_rate",
    "saturation_layers",
    "to_phonemes",
    "train_tuned_lens",
    "tuned_lens",
]
