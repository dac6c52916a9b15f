"""Who speaks: voices of espeak-ng by language, accent and sex, some kept for evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass

LANGUAGES = ("en", "es", "de")

# Accent -> espeak-ng's voice. Its Indian English is not among those of current releases.
ACCENTS = {
    "en": {
        "american": "en-us",
        "rp": "en-gb-x-rp",
        "scottish": "en-gb-scotland",
        "lancaster": "en-gb-x-gbclan",
        "west_midlands": "en-gb-x-gbcwmd",
        "caribbean": "en-029",
    },
    "es": {"castilian": "es", "latin_american": "es-419"},
    "de": {"standard": "de"},
}

# Variants of a voice: the speakers. Robots, whispers and echoes of espeak-ng are left out.
_MALE = "m1 m2 m3 m4 m6 m7 Andy Gene Jacky Lee Mario Mike antonio gustave pablo paul rob travis"
_FEMALE = "f1 f2 f3 f4 Alicia Andrea anika aunty belinda linda shelby steph2"
_HELD_OUT_MALE = "m8 Michael Diogo miguel"
_HELD_OUT_FEMALE = "f5 Annie steph grandma"

TRAINING_SPEAKERS = {"male": tuple(_MALE.split()), "female": tuple(_FEMALE.split())}
HELD_OUT_SPEAKERS = {
    "male": tuple(_HELD_OUT_MALE.split()),
    "female": tuple(_HELD_OUT_FEMALE.split()),
}


@dataclass(frozen=True)
class Voice:
    """One speaker in one language, as quick and as high as on one occasion.

    `rate` in words a minute, `pitch` in espeak-ng's 0 to 99; `stretch` above 1 is a larger speaker.
    """

    language: str
    accent: str
    speaker: str
    sex: str
    rate: int
    pitch: int
    stretch: float

    @property
    def espeak(self) -> str:
        return f"{ACCENTS[self.language][self.accent]}+{self.speaker}"


def draw_voice(
    rng: random.Random, language: str, held_out: bool = False, sex: str | None = None
) -> Voice:
    """A voice that speaks `language`: one of the training speakers, or of the held-out ones."""
    sex = sex or rng.choice(("male", "female"))
    speakers = HELD_OUT_SPEAKERS if held_out else TRAINING_SPEAKERS
    return Voice(
        language=language,
        accent=rng.choice(list(ACCENTS[language])),
        speaker=rng.choice(speakers[sex]),
        sex=sex,
        rate=rng.randint(130, 200),
        pitch=rng.randint(35, 65),
        stretch=1.0 if held_out else round(rng.uniform(0.92, 1.1), 3),
    )
