"""Test sets, spoken anew from a seed: by voices, and of sentences, that the training never had."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.nano.clips import Clip, Part, Plan, chant, code_switch, one_sentence
from hooked_asr.nano.corpus import speak_set
from hooked_asr.nano.fragments import Fragment, cut_off, stuck
from hooked_asr.nano.noise import Samples, Talker, add_noise
from hooked_asr.nano.nonspeech import LEVELS as LEVELS
from hooked_asr.nano.nonspeech import UNHEARD as UNHEARD
from hooked_asr.nano.nonspeech import sound
from hooked_asr.nano.pairs import PAIRS, MinimalPair
from hooked_asr.nano.phrases import capitalised
from hooked_asr.nano.voices import LANGUAGES, Voice, draw_voice

SEED = 7
NOISY = ("white", "babble")
SNRS = (20.0, 10.0, 5.0, 0.0)  # dB
CONFUSED, LIKELY, PARTNER = "confused", "likely", "partner"  # the kinds of a minimal pair's clips

_TALKERS = 4  # of a babble
_VOICES = 2  # that say each frame of a minimal pair
_CHANT_RATE = (240, 320)  # words a minute


@dataclass(frozen=True, eq=False)
class TestClip:
    """A clip to be transcribed, and what a right transcript says.

    `samples` are at 16 kHz, full scale 1; speech lies between `start` and `end` (s). `kind` is the
    part of the set that the clip belongs to: "clean", "white 10 dB", "hiss". Sounds that are not
    speech have a `level` (dBFS), and no voice. Of a minimal pair, `word` was said, and `neighbour`
    is the other one.
    """

    __test__ = False  # for pytest, which takes a class of such a name for tests

    kind: str
    samples: Samples
    text: str
    language: str
    voice: Voice | None = None
    translation: str | None = None
    start: float = 0.0
    end: float = 0.0
    level: float | None = None
    word: str = ""
    neighbour: str = ""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class TestSets:
    """What whisper-nano is tested on; noisy speech is made of `clean` by `with_noise`."""

    __test__ = False

    clean: tuple[TestClip, ...]
    pairs: tuple[TestClip, ...]
    nonspeech: tuple[TestClip, ...]
    repetition: tuple[TestClip, ...]


@dataclass(frozen=True)
class _Asked:
    """A plan, and the word of a minimal pair that it is about."""

    plan: Plan
    word: str = ""
    neighbour: str = ""


def build_test_sets(
    clips_per_language: int = 200,
    seed: int = SEED,
    seconds: float = 6.0,
    pairs: Sequence[MinimalPair] = PAIRS,
) -> TestSets:
    """Speak every set; no clip is longer than `seconds`. The same arguments give the same samples.

    Clean speech has `clips_per_language` clips of each language, each kind of repetition a fifth as
    many, each kind of non-speech at each level a tenth as many. Every clip of a minimal pair is
    said by two voices.
    """
    fifth, tenth = max(1, clips_per_language // 5), max(1, clips_per_language // 10)
    asked = [
        *_pair_plans(pairs, seed),
        *_sentence_plans(clips_per_language, seed),
        *_repetition_plans(fifth, seed),
    ]
    clips = speak_set([one.plan for one in asked], seed)
    spoken = [(_heard(one, clip), clip) for one, clip in zip(asked, clips, strict=True)]
    fitting = [both for both in spoken if both[1].seconds <= seconds]
    sentences = _first(fitting, {"clean"}, clips_per_language)
    clean = tuple(test for test, _ in sentences)
    repeated = _first(fitting, {"chant", "code_switch"}, fifth)
    fragments = [clip for _, clip in _first(sentences, {"clean"}, fifth)]
    return TestSets(
        clean=clean,
        pairs=tuple(test for test, _ in fitting if test.word),
        nonspeech=tuple(_nonspeech(tenth, seed, seconds, clean)),
        repetition=(*(test for test, _ in repeated), *_fragments(fragments, seed, seconds)),
    )


def with_noise(
    clips: Sequence[TestClip], kind: str, snr: float, seed: int = SEED
) -> list[TestClip]:
    """The same clips in a kind of noise, or "babble" of the others, `snr` dB below the speech."""
    rng = _generator(seed, f"{kind} {snr:g} dB")
    return [
        replace(
            clip,
            kind=f"{kind} {snr:g} dB",
            samples=add_noise(
                clip.samples, sound(kind, len(clip.samples), rng, _samples(others)), snr
            ),
        )
        for clip, others in _with_others(clips, rng)
    ]


# --- What is said ---------------------------------------------------------------------------------


def _sentence_plans(n: int, seed: int) -> Iterator[_Asked]:
    """Some more than `n` of a language, for those too long; no sentence twice."""
    for language in LANGUAGES:
        rng = random.Random(f"{seed}/sentences/{language}")
        seen: set[str] = set()
        while len(seen) < n + n // 10 + 1:
            plan = one_sentence(rng, language, evaluated=True)
            if plan.parts[0].written not in seen:
                seen.add(plan.parts[0].written)
                yield _Asked(replace(plan, kind="clean"))


def _pair_plans(pairs: Sequence[MinimalPair], seed: int) -> Iterator[_Asked]:
    """Every frame of every pair: a likely one with the wrong word and the right one."""
    for pair in pairs:
        rng = random.Random(f"{seed}/{pair.language}/{pair.word}/{pair.partner}")
        cases = [
            (CONFUSED, pair.frames, pair.partner, pair.word),
            (LIKELY, pair.frames, pair.word, pair.partner),
            (PARTNER, pair.partner_frames, pair.partner, pair.word),
        ]
        for kind, frames, word, neighbour in cases:
            for frame in frames:
                text = capitalised(frame.format(word))
                for _ in range(_VOICES):
                    part = Part(text, text, draw_voice(rng, pair.language, held_out=True))
                    yield _Asked(Plan(kind, (part,), (rng.uniform(0.0, 0.5),)), word, neighbour)


def _repetition_plans(n: int, seed: int) -> Iterator[_Asked]:
    """Chants, many of which will be too long, and code-switches."""
    for language in LANGUAGES:
        rng = random.Random(f"{seed}/repetition/{language}")
        for _ in range(2 * n + 4):
            plan = chant(rng, language, evaluated=True, times=rng.randint(8, 14))
            (part,) = plan.parts
            quick = replace(part.voice, rate=rng.randint(*_CHANT_RATE))
            yield _Asked(replace(plan, parts=(replace(part, voice=quick),)))
        for _ in range(2 * n + 4):
            yield _Asked(code_switch(rng, language, evaluated=True))


def _heard(asked: _Asked, clip: Clip) -> TestClip:
    plan = asked.plan
    return TestClip(
        kind=plan.kind,
        samples=clip.samples.astype(np.float32) / 2**15,
        text=" ".join(part.spoken for part in plan.parts),
        language=plan.voice.language,
        voice=plan.voice,
        translation=plan.translation,
        start=clip.segments[0].start,
        end=clip.segments[-1].end,
        word=asked.word,
        neighbour=asked.neighbour,
    )


def _first(
    spoken: Sequence[tuple[TestClip, Clip]], kinds: set[str], n: int
) -> list[tuple[TestClip, Clip]]:
    """The first `n` clips of each of the kinds in each language."""
    count: Counter[tuple[str, str]] = Counter()
    found = []
    for test, clip in spoken:
        count[test.kind, test.language] += 1
        if test.kind in kinds and count[test.kind, test.language] <= n:
            found.append((test, clip))
    return found


# --- Fragments ------------------------------------------------------------------------------------


def _fragments(clips: Sequence[Clip], seed: int, seconds: float) -> Iterator[TestClip]:
    for i, clip in enumerate(clips):
        rng = random.Random(f"{seed}/fragment/{i}")
        yield _fragment("cut off", clip, cut_off(clip, rng))
        yield _fragment("stuck", clip, stuck(clip, rng, seconds))


def _fragment(kind: str, clip: Clip, left: Fragment) -> TestClip:
    whole = _heard(_Asked(clip.plan), clip)
    return replace(
        whole,
        kind=kind,
        samples=left.samples.astype(np.float32) / 2**15,
        text=left.text,
        translation=None,
        end=len(left.samples) / SAMPLE_RATE,
    )


# --- Sounds that are not speech -------------------------------------------------------------------


def _nonspeech(n: int, seed: int, seconds: float, speech: Sequence[TestClip]) -> Iterator[TestClip]:
    """`n` clips of each kind at each level, each to be taken for a language in turn."""
    for kind, levels in LEVELS.items():
        rng = _generator(seed, kind)
        for level in levels:
            for i in range(n):
                length = int(rng.uniform(1.0, seconds) * SAMPLE_RATE)
                others = [speech[j] for j in rng.permutation(len(speech))[:_TALKERS]]
                made = sound(kind, length, rng, _samples(others))
                made = made * np.float32(10 ** (level / 20))
                language = LANGUAGES[i % len(LANGUAGES)]
                yield TestClip(kind, made, "", language, end=length / SAMPLE_RATE, level=level)


def _with_others(
    clips: Sequence[TestClip], rng: np.random.Generator
) -> Iterator[tuple[TestClip, list[TestClip]]]:
    """Each clip with a few of the others."""
    for i, clip in enumerate(clips):
        drawn = rng.permutation(len(clips))[: _TALKERS + 1]
        yield clip, [clips[j] for j in drawn if j != i][:_TALKERS]


def _samples(clips: Sequence[TestClip]) -> list[Talker]:
    return [clip.samples for clip in clips]


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])
