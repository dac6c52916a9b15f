"""Concepts in a model's activations: found, steered by, erased, and what that does to transcripts.

direction = mean_difference(german, english, site="encoder.2.resid_post", model=model)
model.transcribe("clip.flac", interventions=[direction.steer(1.0)])

erasure = fit_erasure(features, languages, site="encoder.2.resid_post", model=model)
concept_effect(model, "clips.csv", [erasure.intervention()]).to_pandas()
"""

from hooked_asr.concepts.class_means import ClassMeans
from hooked_asr.concepts.direction import ConceptDirection, cosine, mean_difference
from hooked_asr.concepts.doses import Dose, steering
from hooked_asr.concepts.effect import concept_effect
from hooked_asr.concepts.effect_result import ConceptEffect, DoseName, EffectClip, Outcome
from hooked_asr.concepts.erasure import Erasure
from hooked_asr.concepts.errors import ConceptError
from hooked_asr.concepts.leace import ErasureFitter, fit_erasure

__all__ = [
    "ClassMeans",
    "ConceptDirection",
    "ConceptEffect",
    "ConceptError",
    "Dose",
    "DoseName",
    "EffectClip",
    "Erasure",
    "ErasureFitter",
    "Outcome",
    "concept_effect",
    "cosine",
    "fit_erasure",
    "mean_difference",
    "steering",
]
