"""The same recordings in noise, at another loudness, or backwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hooked_asr.audio import load_audio
from hooked_asr.datasets.build import build, recipe_of
from hooked_asr.datasets.errors import DatasetError
from hooked_asr.datasets.items import Item, Labels, Made, Say, as_pcm
from hooked_asr.datasets.synthesis import EspeakSynthesis
from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.nano.nonspeech import sound
from hooked_asr.sounds.noise import NOISES, Samples, Talker, add_noise, bundled_talkers, rms

_CLEAN = "clean"


def altered(
    clips: Clips,
    out: str | os.PathLike[str],
    *,
    level: float | None = None,
    backwards: bool = False,
    progress: bool = True,
) -> Path:
    """Recordings as controls of a probe: as loud as each other, or played backwards.

        datasets.altered("speech/manifest.csv", "quiet", level=-60.0)
        datasets.altered("speech/manifest.csv", "backwards", backwards=True)

    - `clips`: a folder, a manifest or a list, see `read_clips`; what is said of each stays, but for
      what is named here.
    - `level`: of each, in dBFS (RMS of the whole clip), in the column `level`.
    - `backwards`: time runs the other way, and nothing is said any more: `text` is empty, `speech`
      "no", `kind` "reversed". Each frequency is as loud as before.

    Gives the path of the manifest. Words' and phones' times are left out.

    Raises `DatasetError` for a level at which a clip would be clipped, a silent clip, or nothing to
    alter; `ManifestError` as `read_clips`; `AudioError` for what cannot be read; `RecordsError` as
    every builder.
    """
    if level is None and not backwards:
        raise DatasetError("nothing is to be altered: give level=, or backwards=True")
    read = read_clips(clips)
    recipe = recipe_of("altered", {"level": level, "backwards": backwards}) | {"of": _hash(read)}
    items = [Item(clip.id, _maker(clip, level, backwards)) for clip in read]
    return build(out, recipe, items, EspeakSynthesis(0), progress)


def in_noise(
    clips: Clips,
    out: str | os.PathLike[str],
    noises: Sequence[str] = ("clean", "white", "babble"),
    snr: float = 10.0,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Recordings of speech, each in every noise: `sentences` does this with what it says.

        datasets.in_noise("librispeech.csv", "noisy", snr=10.0)

    - `clips`: as `altered` takes them. `noises`: "clean", "white", "pink", "hum", "clicks",
      "babble" (of the package's five talkers), in the column `noise` ("white 10 dB").
    - `snr`: dB of the speech over the noise.

    Gives the path of the manifest. Raises `DatasetError` for a noise that there is not, and as
    `altered`.
    """
    read = read_clips(clips)
    wrong = [one for one in noises if one not in (_CLEAN, "babble", *NOISES)]
    if wrong or not noises:
        known = ", ".join((_CLEAN, *NOISES, "babble"))
        raise DatasetError(f"noises are {known}, at least one; got {list(noises)}")
    asked = {"noises": list(noises), "snr": snr, "seed": seed}
    recipe = recipe_of("in_noise", asked) | {"of": _hash(read)}
    talkers = bundled_talkers()
    items = [
        Item(f"{clip.id}/{kind}", _noisy(clip, kind, snr, talkers, seed))
        for clip in read
        for kind in dict.fromkeys(noises)
    ]
    return build(out, recipe, items, EspeakSynthesis(0), progress)


def _noisy(
    clip: Clip, kind: str, snr: float, talkers: Sequence[Talker], seed: int
) -> Callable[[Say], Iterable[Made]]:
    def make(say: Say) -> list[Made]:
        samples, name, noise = _samples(clip), _name(clip.id), kind
        if kind != _CLEAN:
            noise, name = f"{kind} {snr:g} dB", f"{name}-{kind}-{snr:g}dB"
            rng = np.random.default_rng([seed, *name.encode()])
            samples = add_noise(samples, sound(kind, len(samples), rng, talkers), snr)
        return [_made(clip, name, samples, {"noise": noise}, clip.text)]

    return make


def _maker(clip: Clip, level: float | None, backwards: bool) -> Callable[[Say], Iterable[Made]]:
    def make(say: Say) -> list[Made]:
        samples, name, labels = _samples(clip), _name(clip.id), dict[str, Any]()
        if level is not None:
            samples, labels["level"] = _at_level(samples, level, clip), level
        if backwards:
            samples, name = samples[::-1].copy(), f"{name}-backwards"
            labels |= {"speech": "no", "kind": "reversed"}
        return [_made(clip, name, samples, labels, text="" if backwards else clip.text)]

    return make


def _at_level(samples: Samples, level: float, clip: Clip) -> Samples:
    loudness = rms(samples)
    if not loudness:
        raise DatasetError(f"clip {clip.id!r} is silent, and no louder at any level: leave it out")
    scaled: Samples = samples * np.float32(10 ** (level / 20) / loudness)
    if np.abs(scaled).max() > 1:
        raise DatasetError(
            f"clip {clip.id!r} would be clipped at {level:g} dBFS: give a lower level"
        )
    return scaled


def _samples(clip: Clip) -> Samples:
    samples: Samples = load_audio(clip.audio_path).numpy().astype(np.float32)
    return samples


def _made(clip: Clip, name: str, samples: Samples, labels: Labels, text: str | None) -> Made:
    return Made(
        name,
        as_pcm(samples.astype(np.float32)),
        text or "",
        clip.language or "",
        clip.group or "",
        {**clip.labels, **labels},
    )


def _name(of: str) -> str:
    """An id as a file's name; ids may be paths."""
    return of.replace("/", "_")


def _hash(clips: Sequence[Clip]) -> str:
    """Of all that is said of the recordings, and of their bytes."""
    made = hashlib.sha256(clips_hash(clips).encode())
    for clip in clips:
        made.update(hashlib.sha256(clip.audio_path.read_bytes()).digest())
    return made.hexdigest()
