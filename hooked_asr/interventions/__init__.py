"""Interventions as data: a site in the model, and what happens there.

An intervention stands wherever a hook does:

    model.run_with_hooks(mel, tokens, fwd_hooks=[zero("decoder.3.cross_attn.5")])
    model.transcribe("clip.flac", fwd_hooks=[replace("encoder.2.mlp", noise_cache)])

A *source* is what comes in from elsewhere: an `ActivationCache` (or any mapping from hook names to
tensors), or one tensor of the activation's own shape, a batch of one standing for every clip. In
`generate` it may be a `Lockstep`, a reference that is decoded beside, on the same tokens:

    model.generate(noisy, interventions=[interpolate("decoder.3.mlp", Lockstep(clean), 0.5)])

`intervention.at_steps(1, 4)` acts in these steps of a decoding alone.
"""

from hooked_asr.generation.lockstep import Lockstep
from hooked_asr.interventions.actions import (
    ACTIONS,
    Action,
    Add,
    Clamp,
    Custom,
    Mean,
    Replace,
    Source,
    Zero,
)
from hooked_asr.interventions.intervention import (
    Intervention,
    add,
    clamp,
    custom,
    interpolate,
    mean,
    replace,
    zero,
)
from hooked_asr.interventions.serial import from_json, to_json
from hooked_asr.interventions.site import PARTS, InterventionError, Site

__all__ = [
    "ACTIONS",
    "PARTS",
    "Action",
    "Add",
    "Clamp",
    "Custom",
    "Intervention",
    "InterventionError",
    "Lockstep",
    "Mean",
    "Replace",
    "Site",
    "Source",
    "Zero",
    "add",
    "clamp",
    "custom",
    "from_json",
    "interpolate",
    "mean",
    "replace",
    "to_json",
    "zero",
]
