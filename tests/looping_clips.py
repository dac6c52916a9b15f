"""Recordings on which the refitted whisper-tiny.en loops: cut and mixed from real sentences."""

from pathlib import Path

from torch import Tensor

from hooked_asr import load_audio
from hooked_asr.audio import fit_length

_FOLDER = Path("audio") / "speech_en_phones"


def looping_clips(shared: Path) -> dict[str, Tensor]:
    """Samples at 16 kHz, by name: as recorded, cut short, and with another speaker behind it."""

    def sentence(name: str) -> Tensor:
        return load_audio(shared / _FOLDER / f"{name}.wav")

    day, great = sentence("spk2_snt4"), sentence("spk1_snt2")
    return {
        "whole": day,
        "cut at 70 %": _beginning(great, 0.70),
        "cut at 85 %": _beginning(great, 0.85),
        "over a child": day + 0.3 * fit_length(sentence("spk1_snt1"), len(day)),
        "over a year": day + 0.3 * fit_length(sentence("spk1_snt3"), len(day)),
    }


def _beginning(clip: Tensor, share: float) -> Tensor:
    return clip[: int(share * len(clip))]
