"""Which parts of a recogniser end a loop: each is switched off, or patched, while it decodes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hooked_asr.audio import load_audio
from hooked_asr.cache import ActivationCache
from hooked_asr.config import ModelConfig
from hooked_asr.generation import Transcript
from hooked_asr.interventions import Intervention, Replace, Site, Zero
from hooked_asr.interventions.actions import Action
from hooked_asr.long_work import work_through
from hooked_asr.patching.grid import Grid, Sites, components, heads
from hooked_asr.patching.inputs import reference_sound
from hooked_asr.patching.loops import (
    HeardClip,
    RepeatedText,
    RepetitionError,
    asked_of,
    check_decodes_rows,
    longest_loop,
)
from hooked_asr.patching.repetition_result import (
    LoopingClip,
    Outcome,
    RepetitionResult,
    TriedSites,
)
from hooked_asr.speech import normaliser, wer
from hooked_asr.speech.repetition import MIN_REPEATS

_COMPONENTS = ("attn", "cross_attn", "mlp")


@torch.no_grad()
def repetition(
    model: Any,
    clips: Sequence[HeardClip],
    *,
    sites: Sequence[Sites] | None = None,
    operation: str | None = None,
    reference: str | None = None,
    min_repeats: int = MIN_REPEATS,
    language: str | None = None,
    max_new_tokens: int | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RepetitionResult:
    """Decode each looping clip with one site after the other changed, and see which end the loop.

    A site mends a clip where the transcript loops no more, and is not empty.

        clips = hear_clips(model, ["one.wav", "other.wav"])
        print(repetition(model, clips).to_pandas())

    - `clips`: from `hear_clips`; those that do not loop are left out.
    - `sites`: see `heads` and `components`; by default attention, cross-attention and MLP of every
      decoder layer, then each head of both attentions.
    - `operation`: "zero" (the default without a reference), or "replace" (with one) by what the
      model computes where it hears the reference and says the same looping text. Positions are
      absolute, so the changed decoding is given as many tokens as the looping one took.
    - `reference`: "noise" (white, as loud as the clip), "silence", or another recording.
    - `min_repeats`, `language`, `max_new_tokens`: as `hear_clips` was given them.
    - `out`: a folder where results are kept as they come; run again, it goes on where it was.

    Raises `RepetitionError` where no clip loops, or operation, reference and sites do not fit
    together; `AudioError` for clips longer than a window, where a reference is patched in;
    `RecordsError` for an `out` that holds other work.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), where components and
    then heads are ablated, and patched from clean audio, in search of what ends a repetition.
    """
    check_decodes_rows(model)
    operation = operation or ("zero" if reference is None else "replace")
    _check(operation, reference)
    looping = [clip for clip in clips if clip.loop]
    if not looping:
        raise RepetitionError(
            f"none of the {len(clips)} recordings loops: nothing is said {min_repeats} times in a "
            "row, and there is nothing to mend"
        )
    grids = [_grid(wish, model.config) for wish in sites or default_sites()]
    places = [site for grid in grids for site in grid.sites]
    options = {"language": language, "max_new_tokens": max_new_tokens}
    one = _Trying(model, places, reference, min_repeats, seed, options)
    by_key = {f"{i:05} {clip.name}": clip for i, clip in enumerate(looping)}
    done = work_through(
        list(by_key),
        lambda key: [asdict(outcome) for outcome in one.outcomes(by_key[key])],
        folder=out,
        asked=None if out is None else asked_of(model, "repetition", looping, one.asked),
        progress=progress,
        name=operation,
        unit="clip",
    )
    outcomes = [[Outcome(**fields) for fields in of_clip] for of_clip in done.results.values()]
    return RepetitionResult(
        clips=[_kept(clip, clip.loop) for clip in looping if clip.loop],
        left_out={clip.name: clip.text for clip in clips if not clip.loop},
        tried=_tried(grids, outcomes),
        operation=operation,
        reference=reference,
        min_repeats=min_repeats,
        model=model.name,
    )


def default_sites() -> list[Sites]:
    """The components of every decoder layer, then the heads of both its attentions."""
    return [components("decoder", _COMPONENTS), heads("decoder.attn"), heads("decoder.cross_attn")]


def _check(operation: str, reference: str | None) -> None:
    if operation not in ("zero", "replace"):
        raise RepetitionError(f"operations are 'zero' and 'replace'; got {operation!r}")
    if operation == "replace" and reference is None:
        raise RepetitionError(
            "to replace, a reference is needed: 'noise', 'silence', or another recording"
        )
    if operation == "zero" and reference is not None:
        raise RepetitionError(
            f"to zero takes no reference; got {reference!r}: leave it out, or replace"
        )


def _grid(wish: Sites, config: ModelConfig) -> Grid:
    if wish.positions is not None:
        raise RepetitionError(
            "while decoding there is no text yet whose positions could be told apart: ask for "
            "sites at all positions"
        )
    return wish.grid(config, config.decoder.n_ctx)


# --- One clip -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Trying:
    """How every clip is decoded anew, with one site after the other changed."""

    model: Any
    places: Sequence[Site]
    reference: str | None
    min_repeats: int
    seed: int
    options: Mapping[str, Any]

    @property
    def asked(self) -> dict[str, Any]:
        """All that outcomes depend on beside model and clips."""
        return {
            "sites": [str(site) for site in self.places],
            "reference": self.reference,
            "reference (hash)": _file_hash(self.reference),
            "min_repeats": self.min_repeats,
            "seed": self.seed,
            **self.options,
        }

    def outcomes(self, clip: HeardClip) -> list[Outcome]:
        """What is heard with each site changed."""
        action = self._action(clip)
        options = dict(self.options)
        if self.reference is not None:
            options["max_new_tokens"] = max(1, len(clip.tokens))
        heard = self.model.generate_rows(
            clip.audio,
            [Intervention(site, action) for site in self.places],
            **options,
        )
        return [_outcome(self.model, clip, one, self.min_repeats) for one in heard]

    def _action(self, clip: HeardClip) -> Action:
        if self.reference is None:
            return Zero()
        hooks = [site.hook for site in self.places]
        return Replace(_reference_run(self.model, clip, self.reference, hooks, self.seed))


def _file_hash(reference: str | None) -> str | None:
    """Of a recording; made sounds are told by their name."""
    if reference is None or not Path(reference).is_file():
        return None
    return hashlib.sha256(Path(reference).read_bytes()).hexdigest()


def _reference_run(
    model: Any, clip: HeardClip, reference: str, hooks: list[str], seed: int
) -> ActivationCache:
    """What the model computes where it hears the reference, and is made to say the same."""
    samples = load_audio(clip.audio)
    model.to_mel(samples)  # refused here, where the clip itself is too long for one window
    other = reference_sound(reference, samples, seed)
    tokens = torch.tensor([[*model.prompt(clip.language), *clip.tokens]], device=model.device)
    names = list(dict.fromkeys(hooks))
    _, cache = model.run_with_cache(model.to_mel(other), tokens, names_filter=names)
    made: ActivationCache = cache
    return made


# --- What came of it ------------------------------------------------------------------------------


def _outcome(model: Any, clip: HeardClip, heard: Transcript, min_repeats: int) -> Outcome:
    looping = longest_loop(model, heard, min_repeats, clip.said) is not None
    return Outcome(
        text=heard.text,
        language=heard.language,
        mended=not looping and re.search(r"\w", heard.text) is not None,
        kept_language=heard.language == clip.language,
        wer=_word_errors(clip, heard),
    )


def _word_errors(clip: HeardClip, heard: Transcript) -> float | None:
    if not clip.said:
        return None
    return wer(clip.said, heard.text, normaliser(clip.language))


def _kept(clip: HeardClip, loop: RepeatedText) -> LoopingClip:
    return LoopingClip(clip.name, clip.text, clip.language, loop.unit, loop.count, clip.said)


def _tried(grids: Sequence[Grid], by_clip: Sequence[Sequence[Outcome]]) -> list[TriedSites]:
    """The outcomes of all grids, which stand behind each other, parted again."""
    by_site = iter([list(of_site) for of_site in zip(*by_clip, strict=True)])
    return [
        TriedSites(
            name=_name(grid),
            axes=grid.axes,
            sites=[str(site) for site in grid.sites],
            outcomes=[next(by_site) for _ in grid.sites],
        )
        for grid in grids
    ]


def _name(grid: Grid) -> str:
    """What the sites of a grid have in common: a stack, or one of its attentions."""
    stack, _, attention = grid.sites[0].hook.split(".")[:3]
    return f"{stack}.{attention}" if "head" in grid.axes else stack
