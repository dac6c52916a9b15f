"""Features read on a corpus: where they are most active, and which labels they go with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_asr.manifests import Clip, Clips, clips_hash, read_clips
from hooked_asr.patching.engine.memory import as_bytes
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.reading.activity import Activity
from hooked_asr.sae.reading.alignments import Aligned, AlignmentsAsked, read_alignments
from hooked_asr.sae.reading.collected import Collected
from hooked_asr.sae.reading.corpus import Passed, Passing, pass_corpus
from hooked_asr.sae.reading.kept import alignments_asked, control_asked, kept_reading
from hooked_asr.sae.reading.reading import FeatureReading
from hooked_asr.sae.reading.row_labels import RowLabels, aligned_labels, clip_labels, token_labels
from hooked_asr.sae.reading.words import heard_words
from hooked_asr.timing import FRAMES, FRAMES_PER_SECOND
from hooked_asr.weights.fingerprint import computed_with

_MEMORY = 2**29  # bytes of activity that wait for the disk
_TOKENS = 8  # on each side of a peak in the decoder


@dataclass(frozen=True)
class _Labelling:
    """What is asked about labels: see `read_features`."""

    columns: Sequence[str] | None
    aligned: dict[str, AlignmentsAsked | None]
    lag: float
    most: int


def read_features(
    sae: SparseAutoencoder,
    model: Any,
    clips: Clips,
    *,
    features: Sequence[int] | None = None,
    top: int = 10,
    labels: Sequence[str] | None = None,
    phones: AlignmentsAsked | None = None,
    words: AlignmentsAsked | None = None,
    sounds: AlignmentsAsked | None = None,
    lag: float = 0.0,
    window: float = 0.5,
    most_labels: int = 256,
    shuffles: int = 3,
    control: FeatureReading | None = None,
    texts: str = "heard",
    language: str | None = None,
    seed: int = 0,
    batch_size: int = 8,
    memory: int | str | None = None,
    skip_errors: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **prompt: Any,
) -> FeatureReading:
    """Run a corpus once, and tell of each feature where it is active and what goes with that.

        reading = read_features(sae, model, "manifest.jsonl", phones="phones", words="heard")
        reading.table("phone").head(20)
        reading.features[12].excerpts

    - `clips`: see `read_clips`; each one window (30 s) at most. Of a site in the encoder the rows
      are its frames that hear any of the clip; in the decoder, the tokens of its text.
    - `features`: only these. `top`: excerpts of each, of other clips first, with `window` seconds
      on each side of the peak (in the decoder 8 tokens).
    - `labels`: columns of the manifest, by default all of texts, true and false that have two
      values or more; clips without a value are left out of that column.
    - `phones`, `words`, `sounds`: what is heard when, see `read_alignments`; `words="heard"` takes
      the model's own words and their times. A frame has the label that is heard at its centre,
      `lag` seconds before it; clips without an alignment are left out. In the encoder only; in the
      decoder there is always "token", the one that is read in.
    - `most_labels`: of each kind; rarer ones count as none.
    - `shuffles`: how often labels are shuffled for comparison. `control`: another reading, of a
      model with random weights and an autoencoder trained on that.
    - `texts`, `language`, `prompt`: how the decoder is forced, see `harvest`.
    - `memory`: of the activity that waits, in bytes or as "2 GiB" (512 MiB if not said); what is
      more lies in a temporary folder, 16 bytes for each activation above 0.
    - `out`: a folder where the reading is kept; asked for again, it is read from there.

    A feature tells a label where it is active above a threshold. Thresholds (0, or one of 15
    quantiles of the feature's activations) and best labels are chosen on one half of the clips; F1
    and mutual information are of the other. Clips of one group are in one half. Shuffled labels are
    exchanged among clips (among groups, where each has one label); those with times are those of
    another clip, from a random moment on, around and around.

    Raises `SAEError` for options that do not fit, a clip that cannot be used, or labels that are
    not there; `ManifestError` as `read_clips`; `RecordsError` for an `out` of another reading.
    """
    if top < 1 or shuffles < 1 or most_labels < 1:
        raise SAEError(
            f"top, shuffles and most_labels are 1 at least; got {top}, {shuffles}, {most_labels}"
        )
    read = read_clips(clips)
    labelling = _Labelling(
        labels, {"phone": phones, "word": words, "sound": sounds}, lag, most_labels
    )
    limit = _MEMORY if memory is None else as_bytes(memory, torch.device("cpu"))
    how = Passing(texts, language, prompt, batch_size, skip_errors, progress)
    settings = {"top": top, "lag": lag, "window": window, "shuffles": shuffles, "seed": seed}
    numbers = _numbers(sae, features)
    reader = _Reader(sae, model, read, labelling, how, limit, numbers, settings, control)
    return reader.read() if out is None else kept_reading(out, reader.asked(), reader.read)


@dataclass(frozen=True, eq=False)
class _Reader:
    """A reading that is yet to be made."""

    sae: SparseAutoencoder
    model: Any
    clips: list[Clip]
    labelling: _Labelling
    how: Passing
    limit: int
    numbers: Sequence[int] | None
    settings: dict[str, Any]
    control: FeatureReading | None

    def read(self) -> FeatureReading:
        clock = self.sae.spec(self.model).clock
        reach = _reach(self.settings["window"], clock)
        given = self.labelling.aligned
        heard = _heard(self.model, self.clips, given, clock, self.how.language, self.how.progress)
        with Activity(self.sae.n_features, self.limit, self.numbers) as activity:
            done = pass_corpus(self.sae, self.model, self.clips, activity, self.how)
            kinds = _row_labels(done, self.labelling, heard, clock)
            own = self.settings
            collected = Collected(
                done.clips, kinds, own["top"], reach, own["shuffles"], own["seed"]
            )
            with tqdm(
                total=len(activity.numbers), desc="features", disable=not self.how.progress
            ) as bar:
                for _, rows, values in activity.by_feature():
                    collected.add(rows, values)
                    bar.update()
        return FeatureReading(
            site=self.sae.site,
            model=self.model.name,
            weights=self.sae.weights,
            clock=clock,
            numbers=activity.numbers,
            clips=done.clips,
            alignments=heard,
            settings=self.settings,
            failed=done.failed,
            control=None if self.control is None else self.control.as_control(),
            **collected.arrays(),
        )

    def asked(self) -> dict[str, Any]:
        """All that the reading depends on."""
        columns, aligned = self.labelling.columns, self.labelling.aligned
        return {
            "work": "read_features",
            **computed_with(self.model),
            "autoencoder (hash)": self.sae.identity,
            "site": self.sae.site,
            "clips (hash)": clips_hash(self.clips),
            "features": None if self.numbers is None else list(self.numbers),
            "columns": None if columns is None else list(columns),
            **{f"{kind}s": alignments_asked(own) for kind, own in aligned.items()},
            "most_labels": self.labelling.most,
            **self.settings,
            "control": control_asked(self.control),
            "texts": self.how.texts,
            "language": self.how.language,
            "prompt": dict(self.how.prompt),
        }


# --- What is asked --------------------------------------------------------------------------------


def _numbers(sae: SparseAutoencoder, features: Sequence[int] | None) -> Sequence[int] | None:
    if features is None:
        return None
    wrong = [one for one in features if not 0 <= one < sae.n_features]
    if wrong or not len(features):
        raise SAEError(f"features are 0 to {sae.n_features - 1}; asked for {wrong or 'none'}")
    return features


def _reach(window: float, clock: str) -> int:
    if clock == "pos":
        return _TOKENS
    if not 0 < window <= 30:
        raise SAEError(f"window is a number of seconds from 0 to 30; got {window:g}")
    return max(1, round(window * FRAMES_PER_SECOND / FRAMES[clock]))


def _heard(
    model: Any,
    clips: Sequence[Clip],
    asked: dict[str, AlignmentsAsked | None],
    clock: str,
    language: str | None,
    progress: bool,
) -> dict[str, dict[str, list[Aligned]]]:
    """What is heard when, of each kind that is asked for."""
    given = {kind: one for kind, one in asked.items() if one is not None}
    if given and clock == "pos":
        raise SAEError(
            f"the positions of a decoder are tokens, which have no times: leave out "
            f"{', '.join(f'{kind}s' for kind in given)}"
        )
    return {
        kind: heard_words(model, clips, language, progress)
        if kind == "word" and isinstance(one, str) and one == "heard"
        else read_alignments(one, clips)
        for kind, one in given.items()
    }


def _row_labels(
    done: Passed,
    asked: _Labelling,
    heard: dict[str, dict[str, list[Aligned]]],
    clock: str,
) -> list[RowLabels]:
    clips = done.clips
    kinds = [
        aligned_labels(kind, own, clips, clock, asked.lag, asked.most)
        for kind, own in heard.items()
    ]
    if clock == "pos":
        kinds.append(token_labels(clips, asked.most))
    columns = _columns(done, asked) if asked.columns is None else asked.columns
    taken = {one.kind for one in kinds}
    wrong = [one for one in columns if one in taken]
    if wrong:
        raise SAEError(f"{wrong[0]!r} is there with times already: name the column otherwise")
    return kinds + [clip_labels(kind, clips, asked.most) for kind in columns]


def _columns(done: Passed, asked: _Labelling) -> list[str]:
    """Columns that name classes: of texts or truths, with two values or more, of several clips."""
    aligned = {one for one in asked.aligned.values() if isinstance(one, str)}
    found = []
    for name in dict.fromkeys(name for clip in done.clips for name in clip.labels):
        values = [clip.labels[name] for clip in done.clips if clip.labels.get(name) is not None]
        classes = set(values)
        plain = all(isinstance(one, str | bool) for one in values) and name not in aligned
        if plain and 2 <= len(classes) <= max(2, len(values) // 2):
            found.append(name)
    return found
