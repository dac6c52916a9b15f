"""The noises that the training hears; `hooked_asr.sounds` makes them."""

from hooked_asr.sounds.noise import Samples, Talker, add_noise, babble, noise, rms

__all__ = ["NOISES", "Samples", "Talker", "add_noise", "babble", "noise", "rms"]

NOISES = ("white", "pink", "hum", "clicks")  # in this order: the training draws among them
