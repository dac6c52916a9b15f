"""Speech with the times of its words and phones; `hooked_asr.sounds` has the synthesiser."""

from hooked_asr.sounds.espeak import Espeak, Interval, SynthesisError, Utterance

__all__ = ["Espeak", "Interval", "SynthesisError", "Utterance"]
