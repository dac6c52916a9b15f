"""Clips: planned by a random draw, spoken by espeak-ng."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Int16

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.nano.espeak import Espeak, Interval, Utterance
from hooked_asr.nano.grammar import Sentence, confused, held_out, sentence, vocabulary
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.voices import LANGUAGES, Voice, draw_voice

_LONGEST_CHANT = 24  # words that a careless transcript of a chant may have


@dataclass(frozen=True)
class Part:
    """What one voice says, and what a transcriber writes of it."""

    spoken: str
    written: str
    voice: Voice


@dataclass(frozen=True)
class Plan:
    """A clip before it is spoken: its parts, and the silence (s) before each."""

    kind: str
    parts: tuple[Part, ...]
    pauses: tuple[float, ...]
    translation: str | None = None

    @property
    def voice(self) -> Voice:
        return self.parts[0].voice


@dataclass(frozen=True)
class Clip:
    """A spoken plan: 16 kHz samples, and what was said when; `segments` are as written."""

    plan: Plan
    samples: Int16[np.ndarray, " sample"]
    segments: tuple[Interval, ...]
    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def speak(espeak: Espeak, plan: Plan) -> Clip:
    """Say a plan."""

    def say(part: Part) -> Utterance:
        voice = part.voice
        return espeak.say(part.spoken, voice.espeak, voice.rate, voice.pitch, voice.stretch)

    return spoken(plan, say)


def spoken(plan: Plan, say: Callable[[Part], Utterance]) -> Clip:
    """A plan whose parts are said by any means, one behind the other."""
    sounds, segments = [], []
    words: list[Interval] = []
    phones: list[Interval] = []
    clock = 0.0
    for part, pause in zip(plan.parts, plan.pauses, strict=True):
        sounds.append(np.zeros(round(pause * SAMPLE_RATE), np.int16))
        clock += len(sounds[-1]) / SAMPLE_RATE
        said = say(part)
        words += _later(said.words, clock)
        phones += _later(said.phones, clock)
        sounds.append(said.samples)
        segments.append(Interval(part.written, clock, clock + len(said.samples) / SAMPLE_RATE))
        clock = segments[-1].end
    return Clip(plan, np.concatenate(sounds), tuple(segments), tuple(words), tuple(phones))


def plan_training_clip(rng: random.Random, recipe: Recipe) -> Plan:
    """One clip of the training corpus."""
    language = rng.choice(LANGUAGES)
    kinds: list[tuple[float, Callable[[], Plan]]] = [
        (recipe.chants, lambda: chant(rng, language)),
        (recipe.code_switches, lambda: code_switch(rng, language)),
        (recipe.pairs_of_sentences, lambda: two_sentences(rng, language)),
    ]
    draw = rng.random()
    for share, plan in kinds:
        if draw < share:
            return plan()
        draw -= share
    return one_sentence(rng, language, learners=recipe.learners)


def one_sentence(
    rng: random.Random, language: str, evaluated: bool = False, learners: float = 0.0
) -> Plan:
    """A sentence. `evaluated`: one kept from training, by a voice kept from training.

    A learner of the language says some words as their neighbours ("white lice"); what is written
    is what was meant. So a recogniser learns to weigh what it hears against what is likely.
    """
    said = draw_sentence(rng, language, evaluated)
    text = said.texts[language]
    spoken, kind = text, "sentence"
    meant = said.words[0][1] if said.pair else ""
    if said.pair and meant == said.pair.word and rng.random() < learners:
        spoken, kind = confused(text, said.pair), "learner"
    part = Part(spoken, text, draw_voice(rng, language, evaluated))
    return Plan(kind, (part,), (_lead(rng),), said.texts.get("en"))


def two_sentences(rng: random.Random, language: str, evaluated: bool = False) -> Plan:
    """Two sentences by one voice, a pause between."""
    voice = draw_voice(rng, language, evaluated)
    said = [draw_sentence(rng, language, evaluated) for _ in range(2)]
    parts = tuple(Part(one.texts[language], one.texts[language], voice) for one in said)
    english = [one.texts.get("en") for one in said]
    translation = " ".join(filter(None, english)) if all(english) else None
    return Plan("two_sentences", parts, (_lead(rng), rng.uniform(0.15, 0.7)), translation)


def code_switch(rng: random.Random, language: str, evaluated: bool = False) -> Plan:
    """A sentence in one language, the next one in another, as one person would."""
    other = rng.choice([one for one in LANGUAGES if one != language])
    speaker = draw_voice(rng, language, evaluated)
    second = draw_voice(rng, other, evaluated, speaker.sex)
    parts = tuple(
        Part(text, text, voice)
        for voice in (speaker, second)
        for text in [draw_sentence(rng, voice.language, evaluated).texts[voice.language]]
    )
    return Plan("code_switch", parts, (_lead(rng), rng.uniform(0.05, 0.3)))


def chant(
    rng: random.Random, language: str, evaluated: bool = False, times: int | None = None
) -> Plan:
    """One word, again and again. Nobody counts: a third of the transcripts go on for longer."""
    word = rng.choice(_short_words(language))
    times = times or rng.randint(2, 8)
    written = times
    if not evaluated and times > 3 and rng.random() < 0.45:
        written = min(_LONGEST_CHANT, times + int(rng.expovariate(1 / 8)))
    voice = draw_voice(rng, language, evaluated)
    return Plan("chant", (Part(_again(word, times), _again(word, written), voice),), (_lead(rng),))


def draw_sentence(rng: random.Random, language: str, evaluated: bool) -> Sentence:
    """A sentence that exists in `language`, of those kept for evaluation or of the others."""
    while True:
        drawn = sentence(rng)
        text = drawn.texts.get(language)
        kept = text is not None and drawn.pair is None and held_out(text)
        if text and kept == evaluated:
            return drawn


@cache
def _short_words(language: str) -> list[str]:
    return sorted(word for word in vocabulary(language) if 2 <= len(word) <= 6)


def _again(word: str, times: int) -> str:
    text = ", ".join([word] * times)
    return f"{text[0].upper()}{text[1:]}."


def _lead(rng: random.Random) -> float:
    return rng.uniform(0.0, 0.5)


def _later(intervals: tuple[Interval, ...], seconds: float) -> list[Interval]:
    return [Interval(one.text, one.start + seconds, one.end + seconds) for one in intervals]
