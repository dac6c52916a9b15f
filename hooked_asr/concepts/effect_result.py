"""What interventions change in transcripts: clip by clip, and on the whole."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.concepts.doses import Dose
from hooked_asr.concepts.effect_plot import effect_figure
from hooked_asr.long_work import Done
from hooked_asr.manifests import Clip
from hooked_asr.patching.saving import ResultError, save_as

_MEANS = ("changed", "language_changed", "with_text", "kl", "log_prob_change")


@dataclass(frozen=True)
class Outcome:
    """What is heard in one clip under one dose.

    - `language`: identified by a Whisper; "" where the model tells none.
    - `changed`: whether the text is not that of the unmodified decoding.
    - `word_errors`, `character_errors`: against the clip's reference.
    - `kl`: from the unmodified next-token distributions to these (nats), the mean over the
      unmodified transcript's tokens and its end; `log_prob`: the mean of these tokens (nats). None
      where that cannot be forced.
    - `languages`: how likely each language is, of all that a Whisper tells apart.
    """

    text: str
    language: str
    changed: bool
    word_errors: int
    character_errors: int
    kl: float | None = None
    log_prob: float | None = None
    languages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EffectClip:
    """A clip as it is heard unmodified (`before`), and what errors are counted against.

    `against`: "text", what is known to be said, or "before". `language`: known, or "".
    """

    id: str
    reference: str
    against: str
    words: int
    characters: int
    language: str
    before: Outcome
    group: str | None = None


@dataclass(frozen=True)
class DoseName:
    """A dose's name, its strength where there is one, and its interventions in words."""

    name: str
    strength: float | None
    interventions: list[str]


@dataclass(frozen=True, eq=False)
class ConceptEffect:
    """Clips, doses, and `outcomes`: for each dose, one for each clip.

    `failed`: why there is nothing of it, for each clip that was skipped.
    """

    clips: list[EffectClip]
    doses: list[DoseName]
    outcomes: list[list[Outcome]]
    model: str
    failed: dict[str, str] = field(default_factory=dict)

    def to_pandas(self, language: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """One row for each dose.

        - `changed`, `language_changed`: shares of clips, of whose texts, or identified languages,
          are others than unmodified; `with_text`, of those in which any is heard. Where `language`
          is asked for, `identified` as that, and `probability`, its mean. `kl` and
          `log_prob_change` (nats): means over clips. Each with both ends of its interval, `_low`
          and `_high`, resampled over clips, or their groups.
        - `with_text_before`: the share of clips in which text is heard unmodified.
        - `wer`, `cer`: errors over all words, or characters, of all clips; `wer_before` and
          `cer_before` of the unmodified transcripts.
        """
        rows = []
        for dose, outcomes in zip(self.doses, self.outcomes, strict=True):
            row: dict[str, Any] = {"name": dose.name, "strength": dose.strength}
            row |= {"clips": len(outcomes), **self._shares(outcomes, language, level)}
            row["with_text_before"] = float(np.mean([bool(one.before.text) for one in self.clips]))
            rows.append(row | self._rates(outcomes))
        return pd.DataFrame(rows)

    def languages(self) -> pd.DataFrame:
        """One row for each dose and language identified: in how many clips, and the share of all.

        The unmodified decoding comes first, under the name "".
        """
        before = [clip.before for clip in self.clips]
        unmodified = DoseName("", None, [])
        tables = []
        for dose, outcomes in [(unmodified, before), *zip(self.doses, self.outcomes, strict=True)]:
            counts = pd.Series([one.language for one in outcomes]).value_counts(sort=False)
            counts = counts.sort_index()
            told: dict[str, Any] = {"name": dose.name, "strength": dose.strength}
            told |= {"language": counts.index, "clips": counts.to_numpy()}
            tables.append(pd.DataFrame(told).assign(share=counts.to_numpy() / len(outcomes)))
        return pd.concat(tables, ignore_index=True)

    def by_clip(self) -> pd.DataFrame:
        """One row for each dose and clip: what is heard before and after, and every number."""
        return pd.DataFrame(
            [
                {
                    "name": dose.name,
                    "strength": dose.strength,
                    "clip": clip.id,
                    "reference": clip.reference,
                    "before": clip.before.text,
                    "language_before": clip.before.language,
                    "log_prob_before": clip.before.log_prob,
                    **asdict(outcome),
                }
                for dose, clip, outcome in self._each()
            ]
        )

    def plot(self, language: str | None = None, level: float = 0.95) -> alt.ConcatChart:
        """Curves over strength, of a colour for each name, in bands of their intervals.

        Texts changed, the language identified (changed, or as `language`), word error rate, and KL
        of the unmodified transcript. Doses without a strength are bars.
        """
        table = self.to_pandas(language, level)
        return effect_figure(table, self._title, self._subtitle(level), language)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the figure (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptEffect:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            return cls.of_plain(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved concept effect: {error!r}") from error

    @classmethod
    def of_plain(cls, found: Mapping[str, Any]) -> ConceptEffect:
        """Out of what JSON holds of it."""
        return cls(
            clips=[_read_clip(one) for one in found["clips"]],
            doses=[DoseName(**one) for one in found["doses"]],
            outcomes=[[Outcome(**one) for one in of_dose] for of_dose in found["outcomes"]],
            model=found["model"],
            failed=found["failed"],
        )

    # --- Over clips -------------------------------------------------------------------------------

    def _shares(
        self, outcomes: Sequence[Outcome], language: str | None, level: float
    ) -> dict[str, float]:
        """Means over clips, each before its interval."""
        names = [*_MEANS, *(["identified", "probability"] if language else [])]
        values: dict[str, list[float]] = {name: [] for name in names}
        for clip, one in zip(self.clips, outcomes, strict=True):
            values["changed"].append(float(one.changed))
            told = one.language != ""
            moved = float(one.language != clip.before.language) if told else np.nan
            values["language_changed"].append(moved)
            values["with_text"].append(float(bool(one.text)))
            values["kl"].append(_number(one.kl))
            values["log_prob_change"].append(_number(one.log_prob) - _number(clip.before.log_prob))
            if language:
                values["identified"].append(float(one.language == language))
                values["probability"].append(_number(one.languages.get(language)))
        about = bootstrap_means(np.array(list(values.values())).T, self._groups, level=level)
        ends = {"": about.mean, "_low": about.low, "_high": about.high}
        return {
            f"{name}{end}": float(numbers[i])
            for i, name in enumerate(values)
            for end, numbers in ends.items()
        }

    def _rates(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        words = sum(clip.words for clip in self.clips)
        characters = sum(clip.characters for clip in self.clips)
        before = [clip.before for clip in self.clips]
        return {
            "wer": _rate(sum(one.word_errors for one in outcomes), words),
            "wer_before": _rate(sum(one.word_errors for one in before), words),
            "cer": _rate(sum(one.character_errors for one in outcomes), characters),
            "cer_before": _rate(sum(one.character_errors for one in before), characters),
        }

    @property
    def _groups(self) -> list[Hashable] | None:
        """What is resampled together: clips of one group, and every clip without one."""
        if all(clip.group is None for clip in self.clips):
            return None
        return [(clip.group, "" if clip.group is not None else clip.id) for clip in self.clips]

    @property
    def _wer_before(self) -> float:
        before = [clip.before for clip in self.clips]
        return self._rates(before)["wer"]

    @property
    def _title(self) -> str:
        return f"What interventions change in {len(self.clips)} transcripts"

    def _subtitle(self, level: float) -> str:
        known = sum(clip.against == "text" for clip in self.clips)
        against = "what is said" if known else "unmodified transcripts"
        against += ", where known" if 0 < known < len(self.clips) else ""
        return (
            f"{Path(self.model).name}; {level:.0%} intervals over clips; errors against {against}; "
            f"word error rate unmodified: {self._wer_before:.3f}"
        )

    def _each(self) -> Iterator[tuple[DoseName, EffectClip, Outcome]]:
        for dose, outcomes in zip(self.doses, self.outcomes, strict=True):
            for clip, outcome in zip(self.clips, outcomes, strict=True):
                yield dose, clip, outcome


def effect_of_records(
    model: Any, clips: Sequence[Clip], doses: Sequence[Dose], done: Done
) -> ConceptEffect:
    """The records of `clip_record` put together, in the order of the clips."""
    read = [(clip, done.results[clip.id]) for clip in clips if clip.id in done.results]
    outcomes = [[Outcome(**one) for one in record["outcomes"]] for _, record in read]
    return ConceptEffect(
        clips=[
            _clip(clip, record, before)
            for (clip, record), (before, *_) in zip(read, outcomes, strict=True)
        ],
        doses=[
            DoseName(one.name, one.strength, list(map(str, one.interventions))) for one in doses
        ],
        outcomes=[[of_clip[i + 1] for of_clip in outcomes] for i in range(len(doses))],
        model=model.name,
        failed=done.failures,
    )


def _clip(clip: Clip, record: Mapping[str, Any], before: Outcome) -> EffectClip:
    about = {name: value for name, value in record.items() if name != "outcomes"}
    return EffectClip(id=clip.id, group=clip.group, before=before, **about)


def _read_clip(fields: Mapping[str, Any]) -> EffectClip:
    return EffectClip(**{**fields, "before": Outcome(**fields["before"])})


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _rate(errors: int, said: int) -> float:
    """NaN where nothing was said at all."""
    return errors / said if said else np.nan
