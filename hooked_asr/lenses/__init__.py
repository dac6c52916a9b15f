"""Lenses: what the streams inside a model already say, read by the model's own last steps."""

from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.lenses.encoder_inputs import EncoderLensError
from hooked_asr.lenses.encoder_result import ClipLens, EncoderLens, LayerTranscript
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit import logit_lens
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.saturation import saturation_layers

__all__ = [
    "ClipLens",
    "EncoderLens",
    "EncoderLensError",
    "LayerTranscript",
    "LensError",
    "LogitLens",
    "encoder_lens",
    "logit_lens",
    "saturation_layers",
]
