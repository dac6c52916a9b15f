"""What the decoder makes of each encoder layer: transcripts, and what they have in common."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import altair as alt
import pandas as pd

from hooked_asr.lenses.encoder_rates import RATES, of_clips, rates_figure, rates_table
from hooked_asr.lenses.encoder_sentences import stock_sentences
from hooked_asr.patching.loops import RepeatedText
from hooked_asr.patching.saving import ResultError, save_as
from hooked_asr.viz.lines import lines


@dataclass(frozen=True)
class LayerTranscript:
    """What is heard where the encoder stops behind one layer; "embed" is before layer 0.

    - `tokens`: the new ones, without the end token; `ended`: whether there was one.
    - `empty`: no word is said; `loop`: what is said again and again, if anything is.
    - `language`: in which the layer was asked, `told`: that which it would tell by itself; None
      for a model that takes no language.
    - `avg_logprob`: mean log-probability (nats) of the tokens, the end token included.
    - `compression_ratio`: of the tokens' bytes, as a `Transcript`'s.
    - `wer`, `cer`: against the clip's reference; None where the model has no tokenizer.
    """

    layer: str
    text: str
    tokens: list[int]
    ended: bool
    empty: bool
    loop: RepeatedText | None
    language: str | None
    told: str | None
    avg_logprob: float
    compression_ratio: float
    wer: float | None
    cer: float | None


@dataclass(frozen=True)
class ClipLens:
    """The transcripts of one clip, layer after layer.

    `reference`: what they are compared with, which is what was "said", or what the "last layer"
    gives, as `against` tells. `language`: that spoken, where it is known without the model;
    `group`: what the clip shares with others (a speaker), of a manifest.
    """

    name: str
    reference: str
    against: str
    layers: list[LayerTranscript]
    language: str | None = None
    group: str | None = None

    @property
    def spoken(self) -> str:
        """The language that is known, or that the last layer was asked in; "" without either."""
        return self.language or self.layers[-1].language or ""


@dataclass(frozen=True)
class EncoderLens:
    """The transcripts of some clips at the same layers each; the last layer's is the ordinary one.

    `min_repeats`: how often a loop says the same, at least. `failed`: why there is nothing of it,
    for each clip that was skipped.
    """

    clips: list[ClipLens]
    min_repeats: int
    model: str
    failed: dict[str, str] = field(default_factory=dict)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each clip and layer; `loop` is what is repeated, `count` how often."""
        return pd.DataFrame([_row(clip, heard) for clip in self.clips for heard in clip.layers])

    def counts(self, by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """One row for each layer, over all clips; or for each group of clips and layer.

        How many clips are `empty`, and how many have `loops`; mean error rates (`wer`, `cer`) over
        the clips for which they are finite; the mean of the clips' `avg_logprob`.

        `by`: "language", that spoken ("" where it is not known), or what each clip is grouped by;
        it is the table's first column, "language" or "group".

        Raises `ResultError` for anything else, or not as many groups as clips.
        """
        if by is None:
            return pd.DataFrame(_counts(self.clips))
        name, groups = self._groups(by)
        return pd.DataFrame(
            [
                {name: group, **row}
                for group in sorted(set(groups))
                for row in _counts(_those(self.clips, groups, group))
            ]
        )

    def rates(
        self, by: str | Sequence[str] | None = None, level: float = 0.95, method: str = "bca"
    ) -> pd.DataFrame:
        """One row for each layer, or group of clips and layer: `counts` as shares, with intervals.

        The share of the clips that are `empty`, that have `loops`, and that the layer tells to be
        in another language (`mistold`; NaN for a model that takes none, or where it is not known);
        mean `wer` and `cer` over the clips for which they are finite. Each stands before both ends
        of its interval, `_low` and `_high`, resampled over clips, or over a manifest's groups;
        `level` and `method` as `bootstrap_means` takes them, `by` as `counts` does.

        Raises `ResultError` as `counts`.
        """
        if by is None:
            return rates_table(of_clips(self.clips), level, method)
        name, groups = self._groups(by)
        tables = {
            group: rates_table(of_clips(_those(self.clips, groups, group)), level, method)
            for group in sorted(set(groups))
        }
        return pd.concat(tables, names=[name, None]).reset_index(level=0).reset_index(drop=True)

    def languages(self) -> pd.DataFrame:
        """One row for each layer and language: how many clips it tells to be in it, of all.

        The most frequent first; none for a model that takes no language.
        """
        return pd.DataFrame(
            [
                {"layer": layer, "told": language, "clips": count, "of": len(heard)}
                for layer, heard in _by_layer(self.clips)
                for language, count in Counter(filter(None, (o.told for o in heard))).most_common()
            ],
            columns=["layer", "told", "clips", "of"],
        )

    def phrases(self, k: int = 3) -> pd.DataFrame:
        """The `k` most frequent whole transcripts of each layer: of how many clips, of all.

        A text that many clips give is no hearing of any of them: a stock phrase of the decoder.
        """
        return pd.DataFrame(
            [
                {"layer": layer, "text": text, "count": count, "of": len(heard)}
                for layer, heard in _by_layer(self.clips)
                for text, count in Counter(one.text for one in heard).most_common(k)
            ],
            columns=["layer", "text", "count", "of"],
        )

    def stock_sentences(self, k: int = 3) -> pd.DataFrame:
        """The `k` sentences of each layer that the transcripts of most clips have, two at least,
        though nobody says them there: in how many clips, of all.

        Sentences end with a full stop, a question or an exclamation mark; those that loop in
        themselves are left out. A clip counts once, and not for what is said in it, case and
        punctuation aside, where that is known.
        """
        said = [clip.reference if clip.against == "said" else "" for clip in self.clips]
        heard = [(layer, [one.text for one in heard]) for layer, heard in _by_layer(self.clips)]
        return stock_sentences(heard, said, k)

    def plot_rates(
        self,
        by: str | Sequence[str] | None = None,
        level: float = 0.95,
        of: Sequence[str] = RATES,
    ) -> alt.ConcatChart:
        """Curves of `rates` over layers, of a colour for each group, in bands of their intervals.

        `of`: which columns, a panel each; those without numbers are left out.

        Raises `ResultError` as `counts`, or for another column.
        """
        wrong = [one for one in of if one not in RATES]
        if wrong or not of:
            raise ResultError(f"rates that are drawn are {', '.join(RATES)}; got {wrong or of!r}")
        title = f"{Path(self.model).name}: {len(self.clips)} clips, the encoder stopped on its way"
        subtitle = f"bands: {level:.0%} intervals over clips"
        return rates_figure(self.rates(by, level), of, title, subtitle)

    def plot(self) -> alt.HConcatChart:
        """Mean error rates, of words and of characters, by layer; see also `save`.

        Raises `ResultError` where there are none, since the model had no tokenizer.
        """
        table = self.counts()
        if table[["wer", "cer"]].isna().all(axis=None):
            raise ResultError(
                "no error rates to draw: a model without a tokenizer gives no texts to compare "
                "(see from_hf), and of clips in which nothing is said there are none"
            )
        against = " or ".join(dict.fromkeys(clip.against for clip in self.clips))
        drawn = {
            name: list(zip(table["layer"], table[column], strict=True))
            for name, column in (("words", "wer"), ("characters", "cer"))
        }
        return lines(
            {"": drawn},
            x="encoder stops behind layer",
            y="error rate",
            title=f"{Path(self.model).name}: {len(self.clips)} clips, against {against}",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything (.json), the table (.csv), or the curves (.html, .png, .svg, .pdf).

        Raises `ResultError` for another suffix.
        """
        save_as(path, lambda: asdict(self), self.to_pandas, self.plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EncoderLens:
        """Read what `save` wrote as JSON.

        Raises `ResultError` for a file that holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            clips = [clip_from(one) for one in fields.pop("clips")]
            return cls(clips=clips, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} holds no saved encoder lens: {error!r}") from error

    def _groups(self, by: str | Sequence[str]) -> tuple[str, list[str]]:
        """What the groups are called, and each clip's."""
        if by == "language":
            return "language", [clip.spoken for clip in self.clips]
        if isinstance(by, str) or len(by) != len(self.clips):
            raise ResultError(
                f"clips are grouped by 'language', or by a list of {len(self.clips)} names, one "
                f"for each clip; got {by!r}"
            )
        return "group", list(by)


def _by_layer(clips: Sequence[ClipLens]) -> Iterator[tuple[str, list[LayerTranscript]]]:
    for heard in zip(*(clip.layers for clip in clips), strict=True):
        yield heard[0].layer, list(heard)


def _counts(clips: Sequence[ClipLens]) -> list[dict[str, Any]]:
    """A row for each layer."""
    return [
        {
            "layer": layer,
            "clips": len(heard),
            "empty": sum(one.empty for one in heard),
            "loops": sum(one.loop is not None for one in heard),
            "wer": _mean(one.wer for one in heard),
            "cer": _mean(one.cer for one in heard),
            "avg_logprob": _mean(one.avg_logprob for one in heard),
        }
        for layer, heard in _by_layer(clips)
    ]


def _those(clips: Sequence[ClipLens], groups: Sequence[str], group: str) -> list[ClipLens]:
    return [clip for clip, own in zip(clips, groups, strict=True) if own == group]


def _row(clip: ClipLens, heard: LayerTranscript) -> dict[str, Any]:
    fields = {name: getattr(heard, name) for name in LayerTranscript.__dataclass_fields__}
    loop = fields.pop("loop")
    repeated = {
        "loops": loop is not None,
        "loop": loop.unit if loop else "",
        "count": loop.count if loop else 0,
    }
    return {"clip": clip.name, **fields, **repeated, "against": clip.against}


def _mean(numbers: Iterable[float | None]) -> float:
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    return fmean(known) if known else math.nan


def clip_from(fields: Mapping[str, Any]) -> ClipLens:
    """A clip's lens as it was before `asdict`."""
    layers = [_layer(dict(one)) for one in fields["layers"]]
    return ClipLens(**{**fields, "layers": layers})


def _layer(fields: dict[str, Any]) -> LayerTranscript:
    loop = fields.pop("loop")
    return LayerTranscript(loop=loop and RepeatedText(**loop), **fields)
