"""An open vocabulary: sentences, pairs, categories and short words, beyond whisper-nano's own."""

from hooked_asr.datasets.open.texts import OpenTexts

__all__ = ["OpenTexts"]
