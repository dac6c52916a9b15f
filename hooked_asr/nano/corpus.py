"""The corpus on disk: shards of spoken clips, written one by one, read memory-mapped."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.nano.clips import Clip, Part, Plan, plan_training_clip, speak
from hooked_asr.nano.espeak import Espeak, Interval
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.voices import Voice


class CorpusError(HookedASRError):
    """A corpus that is not there, not finished, or another one."""


def build_corpus(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Speak the training corpus into `folder`; shards that are there already are kept.

    Raises `CorpusError` where the folder holds the corpus of another recipe.
    """
    root = Path(folder)
    _claim(root, recipe)
    missing = [i for i in range(recipe.shards) if not _records_path(root, i).exists()]
    make = partial(_write_training_shard, root, recipe)
    # A fresh process for each shard: espeak-ng's noise then starts from the same state.
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        done = tqdm(
            pool.imap(make, missing),
            desc="corpus",
            unit="shard",
            total=recipe.shards,
            initial=recipe.shards - len(missing),
            disable=not progress,
        )
        for _ in done:
            pass
    return Corpus(root)


def training_texts(recipe: Recipe, progress: bool = True) -> Counter[str]:
    """What the training has whisper-nano write of speech, part by part, and how often.

    The corpus is planned anew, and not spoken, which takes seconds. The few clips that prove too
    long when they are spoken, and are left out, cannot be told: their texts are here, and those of
    as many at the end of each shard are not.
    """
    shards = tqdm(range(recipe.shards), desc="texts", unit="shard", disable=not progress)
    plans = (plan for i in shards for plan in islice(_plans(recipe, i), recipe.clips_per_shard))
    return Counter(part.written for plan in plans for part in plan.parts)


def speak_set(plans: Sequence[Plan], seed: int) -> list[Clip]:
    """Speak plans in a process of their own: the same plans and seed give the same samples."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_speak_all, (plans, seed))


class Corpus(Sequence[Clip]):
    """A finished corpus: `corpus[i]` is a `Clip`, its samples a window on the file; `recipe` is the
    one it was made by.

    Raises `CorpusError` where the folder holds none, or one that is not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        recipe = self.folder / "recipe.json"
        if not recipe.exists():
            raise CorpusError(f"{self.folder} holds no corpus: run hooked-asr nano corpus")
        self.recipe = Recipe(**json.loads(recipe.read_text()))
        shards = range(self.recipe.shards)
        missing = [i for i in shards if not _records_path(self.folder, i).exists()]
        if missing:
            raise CorpusError(
                f"{len(missing)} of {len(shards)} shards are missing in {self.folder}: run "
                "hooked-asr nano corpus again, it goes on where it was"
            )
        self._samples = [np.load(_samples_path(self.folder, i), mmap_mode="r") for i in shards]
        self._records = [
            (shard, json.loads(line))
            for shard in shards
            for line in _records_path(self.folder, shard).read_text().splitlines()
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: Any) -> Any:
        shard, record = self._records[i]
        start, end = record["samples"]
        return _clip(record, self._samples[shard][start:end])

    @cached_property
    def phones(self) -> list[str]:
        """The phones of the corpus in IPA, stress marks left out, the commonest first."""
        said = (one["text"] for _, record in self._records for one in record["phones"])
        counts = Counter(map(bare, said))
        return [phone for phone, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    def seconds(self) -> list[float]:
        """The length of each clip in seconds."""
        spans = (record["samples"] for _, record in self._records)
        return [(end - start) / SAMPLE_RATE for start, end in spans]


def bare(phone: str) -> str:
    """A phone without its stress marks."""
    return phone.strip("ˈˌ")


def _claim(root: Path, recipe: Recipe) -> None:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "recipe.json"
    said = json.loads(json.dumps(_corpus_part(recipe)))
    if not path.exists():
        with written_aside(path) as aside:
            aside.write_text(json.dumps(said, indent=1))
    elif json.loads(path.read_text()) != said:
        raise CorpusError(f"{root} holds the corpus of another recipe: give another folder")


def _corpus_part(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the corpus."""
    names = "seed shards clips_per_shard seconds chants pairs_of_sentences code_switches learners"
    return {name: getattr(recipe, name) for name in names.split()}


def _write_training_shard(root: Path, recipe: Recipe, shard: int) -> None:
    espeak = Espeak(seed=recipe.seed * 10_000 + shard)
    spoken = (speak(espeak, plan) for plan in _plans(recipe, shard))
    fitting = (clip for clip in spoken if clip.seconds <= recipe.seconds)
    clips = list(islice(fitting, recipe.clips_per_shard))
    starts = np.cumsum([0, *(len(clip.samples) for clip in clips)]).tolist()
    with written_aside(_samples_path(root, shard)) as aside:
        np.save(aside, np.concatenate([clip.samples for clip in clips]))
    with written_aside(_records_path(root, shard)) as aside:  # last: it says the shard is whole
        records = map(_record, clips, pairwise(starts))
        aside.write_text("".join(json.dumps(record) + "\n" for record in records))


def _plans(recipe: Recipe, shard: int) -> Iterator[Plan]:
    """What is said in a shard, and in clips that prove too long for it; without end."""
    rng = random.Random(f"{recipe.seed}/{shard}")
    while True:
        yield plan_training_clip(rng, recipe)


def _speak_all(plans: Sequence[Plan], seed: int) -> list[Clip]:
    espeak = Espeak(seed)
    return [speak(espeak, plan) for plan in plans]


def _samples_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:04}.npy"


def _records_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:04}.jsonl"


def _record(clip: Clip, span: tuple[int, int]) -> dict[str, Any]:
    record = dataclasses.asdict(dataclasses.replace(clip, samples=np.empty(0)))
    return record | {"samples": span}


def _clip(record: dict[str, Any], samples: np.ndarray) -> Clip:
    said = record["plan"]
    parts = tuple(Part(**{**part, "voice": Voice(**part["voice"])}) for part in said["parts"])
    plan = Plan(**{**said, "parts": parts, "pauses": tuple(said["pauses"])})
    times = {
        name: tuple(Interval(**one) for one in record[name])
        for name in ("segments", "words", "phones")
    }
    return Clip(plan, samples, **times)
