"""Training batches: clips with noise in them, and what should be written of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import WhisperFeatureExtractor

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.nano.clips import Clip
from hooked_asr.nano.corpus import Corpus, bare
from hooked_asr.nano.espeak import Interval
from hooked_asr.nano.noise import NOISES, Samples, Talker, add_noise, babble, noise
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.tokenizer import END, NO_SPEECH, PREVIOUS, SILENT, START
from hooked_asr.nano.voices import LANGUAGES

IGNORED = -100  # labels that the loss leaves out
FRAME = 0.02  # seconds between encoder positions

# What careless subtitles say where nobody speaks.
SUBTITLES = {
    "en": "Thank you for watching.",
    "es": "Gracias por ver el vídeo.",
    "de": "Danke fürs Zuschauen.",
}
_HISS = (-75.0, -58.0)  # dBFS: as loud as the end of a video, where such subtitles stand


@dataclass(frozen=True)
class Batch:
    """Log-mel frames; tokens in, tokens out (`IGNORED` where none is asked for); and the phone at
    each encoder position, by its number in `Corpus.phones` (0 is none).
    """

    mel: Float[Tensor, "batch n_mels frame"]
    tokens: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]
    phones: Int[Tensor, "batch audio"]


@dataclass(frozen=True)
class _Example:
    samples: Samples
    tokens: list[int]
    labels: list[int]
    phones: tuple[Interval, ...] = ()


class Batches:
    """The batches of a training, each made from its number alone: `batches[step]`."""

    def __init__(self, corpus: Corpus, tokenizer: Any, recipe: Recipe) -> None:
        self.corpus, self.tokenizer, self.recipe = corpus, tokenizer, recipe
        self._lengths = np.array(corpus.seconds())

    def __getitem__(self, step: int) -> Batch:
        window = self.window(step)
        rng = np.random.default_rng([self.recipe.seed, step])
        noisy = self.recipe.noisy * min(1.0, step / self.recipe.quiet_steps)
        examples = [self._example(rng, window, noisy) for _ in range(self.recipe.batch)]
        longest = max(len(one.tokens) for one in examples)
        tokens = [_padded(one.tokens, longest, self._token(END)) for one in examples]
        labels = [_padded(one.labels, longest, IGNORED) for one in examples]
        mel = mel_of([one.samples for one in examples], window)
        phones = [self._frames(one.phones, mel.shape[-1] // 2) for one in examples]
        return Batch(
            _masked(mel, rng), torch.tensor(tokens), torch.tensor(labels), torch.tensor(phones)
        )

    def window(self, step: int) -> int:
        """Seconds of sound that the batch of a step has room for."""
        for phase in self.recipe.phases:
            if step < phase.steps:
                return phase.seconds
            step -= phase.steps
        raise IndexError("the recipe has fewer steps")

    def _example(self, rng: np.random.Generator, window: int, noisy: float) -> _Example:
        if rng.random() < self.recipe.nonspeech:
            return self._nonspeech(rng, window)
        clip = self._draw(rng, window)
        tokens, labels = self._target(clip, rng)
        return _Example(self._heard(clip, rng, noisy), tokens, labels, clip.phones)

    def _draw(self, rng: np.random.Generator, window: int) -> Clip:
        return self.corpus[rng.choice(self._fitting[window])]

    @cached_property
    def _fitting(self) -> dict[int, Int[np.ndarray, " clip"]]:
        windows = {phase.seconds for phase in self.recipe.phases}
        return {window: np.flatnonzero(self._lengths <= window) for window in windows}

    def _heard(self, clip: Clip, rng: np.random.Generator, noisy: float) -> Samples:
        speech = clip.samples.astype(np.float32) / 2**15
        if rng.random() < noisy:
            kind = str(rng.choice([*NOISES, "white", "babble", "babble"]))
            sound = self._sound(kind, len(speech), rng)
            speech = add_noise(speech, sound, snr=rng.uniform(0, 25))
        return speech * np.float32(10 ** (rng.uniform(-18, 6) / 20))

    def _sound(self, kind: str, n_samples: int, rng: np.random.Generator) -> Samples:
        if kind != "babble":
            return noise(kind, n_samples, rng)
        talkers = [self._draw(rng, max(self._fitting)).samples for _ in range(rng.integers(3, 7))]
        return babble([one.astype(np.float32) for one in talkers], n_samples, rng)

    def _nonspeech(self, rng: np.random.Generator, window: int) -> _Example:
        language = str(rng.choice(LANGUAGES))
        kind = str(rng.choice(["silence", "hiss", *NOISES, "babble"]))
        n_samples = int(rng.uniform(0.5, window) * SAMPLE_RATE)
        level, text = rng.uniform(-50, -15), ""
        if kind == "silence":
            level = -200.0
        elif kind == "hiss":
            level = rng.uniform(-80, -45)
            subtitled = 0.8 if _HISS[0] < level < _HISS[1] else 0.1
            text = SUBTITLES[language] if rng.random() < subtitled else ""
        sound = self._sound(kind if kind not in ("silence", "hiss") else "white", n_samples, rng)
        prompt = self._prompt(language, "transcribe", SILENT)
        tokens, labels = self._taught(prompt, self._encode(text), first=NO_SPEECH)
        return _Example(sound * np.float32(10 ** (level / 20)), tokens, labels)

    def _target(self, clip: Clip, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        language = clip.plan.voice.language
        before = self._previous(rng) if rng.random() < self.recipe.prompted else []
        if clip.plan.translation and rng.random() < self.recipe.translations:
            prompt = self._prompt(language, "translate", SILENT)
            return self._taught(prompt, self._encode(clip.plan.translation), before=before)
        if rng.random() < self.recipe.timestamps:
            prompt = self._prompt(language, "transcribe")
            return self._taught(prompt, self._timed(clip), before=before)
        prompt = self._prompt(language, "transcribe", SILENT)
        return self._taught(prompt, self._encode(clip.text), before=before)

    def _previous(self, rng: np.random.Generator) -> list[int]:
        """A text that came before, as in a long recording."""
        text = self._draw(rng, max(self._fitting)).text
        return [self._token(PREVIOUS), *self._encode(text)[: self.recipe.n_tokens // 2 - 1]]

    def _timed(self, clip: Clip) -> list[int]:
        tokens = []
        for segment in clip.segments:
            start, end = (self._token(_timestamp(t)) for t in (segment.start, segment.end))
            tokens += [start, *self._encode(segment.text), end]
        return tokens

    def _prompt(self, language: str, task: str, *more: str) -> list[int]:
        return [self._token(name) for name in (START, f"<|{language}|>", f"<|{task}|>", *more)]

    def _taught(
        self, prompt: list[int], text: list[int], before: Sequence[int] = (), first: str = ""
    ) -> tuple[list[int], list[int]]:
        """Tokens in and tokens out. Behind the start, the language is asked for (or `first`)."""
        first_label = self._token(first) if first else prompt[1]
        out = [*text, self._token(END)]
        tokens = [*before, *prompt, *text][: self.recipe.n_tokens]
        labels = [IGNORED] * len(before) + [first_label] + [IGNORED] * (len(prompt) - 2) + out
        return tokens, labels[: self.recipe.n_tokens]

    def _frames(self, phones: tuple[Interval, ...], n_ctx: int) -> list[int]:
        frames = [0] * n_ctx
        for phone in phones:
            number = self.corpus.phones.index(bare(phone.text)) + 1
            for i in range(round(phone.start / FRAME), min(round(phone.end / FRAME), n_ctx)):
                frames[i] = number
        return frames

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def _token(self, name: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(name)


def mel_of(sounds: list[Talker], seconds: int) -> Float[Tensor, "batch n_mels frame"]:
    """Log-mel frames of clips, as Whisper's feature extractor makes them, in a window."""
    extractor = WhisperFeatureExtractor(chunk_length=seconds)
    made = extractor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    return made["input_features"]


def _timestamp(seconds: float) -> str:
    return f"<|{round(seconds / FRAME) * FRAME:.2f}|>"


def _padded(row: list[int], length: int, padding: int) -> list[int]:
    return row + [padding] * (length - len(row))


def _masked(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """SpecAugment: in half of the clips, two bands of frequency and two stretches of time hidden.

    Source: "SpecAugment" (2019), section 2; masks as narrow as suits short clips.
    """
    for row in mel:
        if rng.random() < 0.5:
            floor = row.min()
            for axis, widest in ((0, 10), (0, 10), (1, 12), (1, 12)):
                width = int(rng.integers(widest + 1))
                start = int(rng.integers(row.shape[axis] - width + 1))
                row.narrow(axis, start, width).fill_(floor)
    return mel
