"""Who speaks: espeak-ng's voices as whisper-nano's, or the voices of any other program."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hooked_asr.datasets.errors import DatasetError
from hooked_asr.nano.voices import (
    ACCENTS,
    HELD_OUT_SPEAKERS,
    LANGUAGES,
    TRAINING_SPEAKERS,
    Voice,
    draw_voice,
)

SEXES = ("female", "male")

_NAMED = re.compile(
    r"(?:(?P<language>[a-z]{2,3})=)?(?P<name>.+?)(?::(?P<sex>female|male)(?::(?P<accent>.+))?)?"
)


@dataclass(frozen=True)
class NamedVoice(Voice):
    """A voice of another program, which knows it by `speaker`."""

    @property
    def espeak(self) -> str:
        return self.speaker


@dataclass(frozen=True)
class Cast:
    """The speakers to draw from.

    - `held_out`: those that whisper-nano never heard in training, or those that it did.
    - `sex`, `accents`: only these; of a language that has none of the accents, all.
    - `named`: voices of another program, in the place of espeak-ng's.
    """

    held_out: bool = True
    sex: str | None = None
    accents: tuple[str, ...] = ()
    named: tuple[NamedVoice, ...] = ()

    def draw(self, rng: random.Random, language: str, besides: Sequence[str] = ()) -> Voice:
        """A voice that speaks a language: none of the speakers `besides`, where there are others.

        Raises `DatasetError` where none speaks it.
        """
        speakers = [one for one in self.speakers(language) if one not in besides]
        speaker = rng.choice(speakers or self.speakers(language))
        if self.named:
            return self._named(rng, language, speaker)
        sex = _sex_of(speaker)
        voice = draw_voice(rng, language, self.held_out, sex)
        own = [one for one in ACCENTS[language] if one in self.accents]
        accent = rng.choice(own) if own else voice.accent
        return replace(voice, speaker=speaker, accent=accent)

    def several(self, rng: random.Random, language: str, n: int) -> list[Voice]:
        """`n` voices; of different speakers as long as there are enough."""
        drawn: list[Voice] = []
        for _ in range(n):
            used = [one.speaker for one in drawn]
            fewest = min(map(used.count, self.speakers(language)), default=0)
            drawn.append(
                self.draw(rng, language, [one for one in used if used.count(one) > fewest])
            )
        return drawn

    def same(self, rng: random.Random, voice: Voice, language: str) -> Voice:
        """The speaker of a voice in another language, or one of their sex where they lack it."""
        speakers = self.speakers(language)
        alike = [voice.speaker] if voice.speaker in speakers else []
        alike = alike or [one for one in speakers if self._sex(one) == voice.sex] or speakers
        return self.draw(rng, language, [one for one in speakers if one not in alike])

    def speakers(self, language: str) -> list[str]:
        """Those who speak a language; raises `DatasetError` where none does."""
        if self.named:
            own = [one for one in self.named if one.language in ("", language)]
            found = [one.speaker for one in own if self.sex in (None, one.sex)]
        else:
            all_of_them = HELD_OUT_SPEAKERS if self.held_out else TRAINING_SPEAKERS
            found = [one for sex in SEXES for one in all_of_them[sex] if self.sex in (None, sex)]
        if not found:
            raise DatasetError(
                f"no voice speaks {language!r}{f' and is {self.sex}' if self.sex else ''}; voices "
                f"are {', '.join(one.speaker for one in self.named)}"
            )
        return found

    def _named(self, rng: random.Random, language: str, speaker: str) -> Voice:
        voice = next(one for one in self.named if one.speaker == speaker)
        return replace(voice, language=language, rate=rng.randint(130, 200))

    def _sex(self, speaker: str) -> str:
        named = {one.speaker: one.sex for one in self.named}
        return named[speaker] if self.named else _sex_of(speaker)


def cast(
    held_out: bool = True,
    sex: str | None = None,
    accents: Sequence[str] | None = None,
    voices: Sequence[str] | None = None,
) -> Cast:
    """The speakers that were asked for.

    Raises `DatasetError` for a sex or an accent that none has.
    """
    named = tuple(_read(one) for one in voices or ())
    if sex not in (None, *SEXES):
        raise DatasetError(f"sex is {' or '.join(SEXES)}; got {sex!r}")
    known = [name for own in ACCENTS.values() for name in own]
    for accent in accents or ():
        if accent not in known:
            raise DatasetError(f"no accent {accent!r}; there are {', '.join(known)}")
    return Cast(held_out, sex, tuple(accents or ()), named)


def checked_languages(languages: Sequence[str]) -> tuple[str, ...]:
    """Raises `DatasetError` for a language that there are no texts in, or no language."""
    asked = (languages,) if isinstance(languages, str) else tuple(languages)
    wrong = [one for one in asked if one not in LANGUAGES]
    if wrong or not asked or len(set(asked)) < len(asked):
        raise DatasetError(
            f"languages are {', '.join(LANGUAGES)}, at least one and each once; got {list(asked)}"
        )
    return asked


def _read(named: str) -> NamedVoice:
    """A voice from "name", "name:female", "de=name:male:bavarian"."""
    found = _NAMED.fullmatch(named)
    if not found:
        raise DatasetError(f"a voice is as in a.onnx or de=a.onnx:female; got {named!r}")
    said = {name: value or "" for name, value in found.groupdict().items()}
    return NamedVoice(said["language"], said["accent"], said["name"], said["sex"], 160, 50, 1.0)


def _sex_of(speaker: str) -> str:
    return next(
        sex
        for sex in SEXES
        if speaker in TRAINING_SPEAKERS[sex] or speaker in HELD_OUT_SPEAKERS[sex]
    )
