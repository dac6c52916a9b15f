"""Which parts of a recogniser make it write the likelier word: each moved towards a reference."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hooked_asr.audio import load_audio
from hooked_asr.config import ModelConfig
from hooked_asr.generation import Generated
from hooked_asr.interventions import Site
from hooked_asr.long_work import work_through
from hooked_asr.names import select
from hooked_asr.patching.dataset import pair_seed
from hooked_asr.patching.grid import Sites, SitesError, components
from hooked_asr.patching.listening import Listening, Samples
from hooked_asr.patching.mending_result import MendingResult
from hooked_asr.patching.references import reference_sound
from hooked_asr.patching.words import HeardWord, WordError, plain_fields
from hooked_asr.processes import Process
from hooked_asr.weights.fingerprint import computed_with

ALPHAS = (0.25, 0.5, 0.75, 1.0)
ANOTHER = "another"


@dataclass(frozen=True)
class _Plan:
    """What is done to every recording; `others`: which one each is moved towards, by id."""

    sites: tuple[Site, ...]
    alphas: tuple[float, ...]
    reference: str
    others: Mapping[str, HeardWord]
    seed: int
    max_new_tokens: int | None


@torch.no_grad()
def mend_words(
    model: Any,
    heard: Sequence[HeardWord],
    *,
    sites: Sequence[Sites | Site | str] | None = None,
    alphas: Sequence[float] = ALPHAS,
    reference: str = "noise",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    process: Process | None = None,
    progress: bool = True,
) -> MendingResult:
    """Decode each recording with one site after the other moved towards a reference, and see which
    word is then written.

        wrong = [one for one in hear_words(model, "manifest.csv") if one.verdict == "neighbour"]
        result = mend_words(model, wrong, out="mended")
        print(result.reach())

    A site becomes `(1 - alpha) * own + alpha * reference's`, at all positions. In the encoder the
    reference is what the model computes on it; in the decoder, what it computes where it hears the
    reference and has said the same: it is decoded in lockstep. Transcripts are those of `generate`
    with each intervention alone.

    - `heard`: from `hear_words`, those that are to be mended; or rightly heard ones, to see what
      is broken.
    - `sites`: see `components` and `heads`; by default what attentions and MLP of every encoder and
      decoder layer write to the stream.
    - `alphas`: 1 is the reference's own; above 1 goes beyond it.
    - `reference`: "noise" (white, as loud as the clip), another of `REFERENCE_HELP`, or "another":
      for each recording one of the others, drawn by `seed`, that says neither of its words.
    - `out`: a folder where transcripts are kept as they come; run again, it goes on behind them.
    - `max_new_tokens`: as `hear_words` was given it. `process`: as in `sweep_dataset`.

    Qwen2-Audio decodes site by site, Whisper many sites together.

    Raises `WordError` for no recordings at all or none to take for another, `SitesError`,
    `AudioError`; `RecordsError` for an `out` that holds other work.

    Source: "Beyond Transcription: Mechanistic Interpretability in ASR" (2025), where every
    component is patched from white noise at several strengths.
    """
    if not heard:
        raise WordError("there are no recordings: give those of `hear_words` that are to be mended")
    places = _places(model, sites)
    numbers = tuple(map(float, alphas))
    others = _others(heard, seed) if reference == ANOTHER else {}
    plan = _Plan(places, numbers, reference, others, seed, max_new_tokens)
    by_id = {one.id: one for one in heard}
    done = work_through(
        list(by_id),
        lambda name: _changed(model, by_id[name], plan),
        folder=out,
        asked=None if out is None else _asked(model, heard, plan),
        process=process,
        progress=progress,
        name=f"towards {reference}",
        unit="clip",
    )
    return MendingResult(
        clips=[by_id[name] for name in done.results],
        sites=list(map(str, places)),
        alphas=list(numbers),
        changed=list(done.results.values()),
        reference=reference,
        seed=seed,
        model=model.name,
    )


def written_to_stream(config: ModelConfig) -> list[Sites]:
    """What attentions and MLPs write to the stream: of the encoder's layers, and the decoder's."""
    cross = () if config.prefix else ("cross_attn",)
    return [components("encoder", ("attn", "mlp")), components("decoder", ("attn", *cross, "mlp"))]


def _places(model: Any, sites: Sequence[Sites | Site | str] | None) -> tuple[Site, ...]:
    found: list[Site] = []
    for wish in written_to_stream(model.config) if sites is None else sites:
        if not isinstance(wish, Sites):
            found.append(wish if isinstance(wish, Site) else Site.parse(wish))
        elif wish.stack == "decoder" and wish.positions is not None:
            raise SitesError("while decoding there is no text yet: ask for sites at all positions")
        else:
            found += wish.grid(model.config, model.config.decoder.n_ctx).sites
    select([site.hook for site in found], model.hook_table)  # refuses unknown names
    return tuple(found)


def _others(heard: Sequence[HeardWord], seed: int) -> dict[str, HeardWord]:
    """For each recording another one that is about other words."""
    found = {}
    for one in heard:
        own = {one.word.lower(), one.neighbour.lower()}
        about = [
            other for other in heard if not own & {other.word.lower(), other.neighbour.lower()}
        ]
        if not about:
            raise WordError(
                f"all recordings are about {one.word!r} and {one.neighbour!r}: none can be taken "
                "for another; give some of other words, or another reference"
            )
        found[one.id] = random.Random(pair_seed(seed, one.id)).choice(about)
    return found


def _changed(model: Any, one: HeardWord, plan: _Plan) -> dict[str, str]:
    """The transcripts that differ, by their place among sites and alphas."""
    samples = load_audio(one.audio)
    listening = Listening(model, samples, one.asked, plan.max_new_tokens)
    untouched = Generated(one.heard, one.tokens)
    other = _other_sound(one, samples, plan)
    texts = listening.towards(other, plan.sites, plan.alphas, untouched)
    return {str(i): text for i, text in enumerate(texts) if text != one.heard}


def _other_sound(one: HeardWord, samples: Samples, plan: _Plan) -> Samples:
    if plan.reference == ANOTHER:
        return load_audio(plan.others[one.id].audio)
    return reference_sound(plan.reference, samples, pair_seed(plan.seed, one.id))


def _asked(model: Any, heard: Sequence[HeardWord], plan: _Plan) -> dict[str, Any]:
    """All that the transcripts depend on."""
    said = json.dumps(plain_fields(heard))
    return {
        "work": "mend_words",
        **computed_with(model),
        "recordings (hash)": hashlib.sha256(said.encode()).hexdigest(),
        "sites": list(map(str, plan.sites)),
        "alphas": list(plan.alphas),
        "reference": plan.reference,
        "seed": plan.seed,
        "max_new_tokens": plan.max_new_tokens,
    }
