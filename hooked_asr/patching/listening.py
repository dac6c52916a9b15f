"""What a recogniser of either family hears in one recording, with sites moved towards another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.audio import fit_length
from hooked_asr.cache import ActivationCache
from hooked_asr.generation import Generated
from hooked_asr.interventions import Intervention, Lockstep, Replace, Site

Samples = Float[Tensor, " _"]


class Listening:
    """A recording, how it is asked for, and greedy decodings of it.

    - `samples`: at 16 kHz, a window at most.
    - `asked`: the prompt's options, as `model.settled` gives them.

    Raises `AudioError` for a longer one.
    """

    def __init__(
        self,
        model: Any,
        samples: Samples,
        asked: Mapping[str, Any],
        max_new_tokens: int | None = None,
    ) -> None:
        self.model, self.samples, self.asked = model, samples, dict(asked)
        self.max_new_tokens = max_new_tokens
        self._inputs = model.to_inputs(samples, **self.asked)

    def untouched(self) -> Generated:
        """What is heard in the recording as it is."""
        return self._decoded()

    def towards(
        self,
        other: Samples,
        sites: Sequence[Site],
        alphas: Sequence[float],
        untouched: Generated,
    ) -> list[str]:
        """Transcripts with `(1 - alpha) * own + alpha * other's` at one site, each site and alpha.

        What the other recording makes the model compute in the encoder is cached; in the decoder it
        is decoded in lockstep, on whatever is then said.

        - `untouched`: what is heard without. A Whisper is first forced with its tokens: where they
          are what it says under an intervention, too, nothing is decoded. Up to where a transcript
          differs, forced and lockstep references are the same.

        Gives the texts site by site, for each the alphas in their order.
        """
        if self.model.config.prefix:
            other = fit_length(other, len(self.samples))
        table = self.model.hook_table
        rows = [(site, alpha) for site in sites for alpha in alphas]
        in_decoder = [i for i, (site, _) in enumerate(rows) if table[site.hook].clock == "pos"]
        in_encoder = [i for i in range(len(rows)) if i not in set(in_decoder)]
        heard = dict(
            zip(in_encoder, self._cached(other, [rows[i] for i in in_encoder]), strict=True)
        )
        beside = self._beside(other, [rows[i] for i in in_decoder], untouched)
        heard |= dict(zip(in_decoder, beside, strict=True))
        return [heard[i] for i in range(len(rows))]

    # --- References -------------------------------------------------------------------------------

    def _cached(self, other: Samples, rows: Sequence[tuple[Site, float]]) -> list[str]:
        if not rows:
            return []
        cache = self._cache(other, rows, ())
        return self._decoded_rows([Intervention(at, Replace(cache, alpha)) for at, alpha in rows])

    def _beside(
        self, other: Samples, rows: Sequence[tuple[Site, float]], untouched: Generated
    ) -> list[str]:
        differ = self._differing(other, rows, untouched.tokens) if rows else []
        source = self._inputs_of(other) if self.model.config.prefix else other
        return [
            self._decoded(Intervention(site, Replace(Lockstep(source), alpha))).text
            if differs
            else untouched.text
            for (site, alpha), differs in zip(rows, differ, strict=True)
        ]

    def _differing(
        self, other: Samples, rows: Sequence[tuple[Site, float]], said: Sequence[int]
    ) -> list[bool]:
        """Which rows say something else than the untouched decoding; all, where that is unknown."""
        if not hasattr(self.model, "generate_rows"):
            return [True] * len(rows)
        cache = self._cache(other, rows, said)
        n_prompt = self._inputs["tokens"].shape[1]
        limits = [self.model.token_limit(n_prompt) - n_prompt, self.max_new_tokens]
        room = len(said) + 1  # for what is said where the untouched transcript ends
        room = min([room, *(limit for limit in limits if limit is not None)])
        heard = self.model.generate_rows(
            self.samples,
            [Intervention(site, Replace(cache, alpha)) for site, alpha in rows],
            max_new_tokens=room,
            **self.asked,
        )
        return [list(one.tokens) != list(said) for one in heard]

    def _cache(
        self, other: Samples, rows: Sequence[tuple[Site, float]], said: Sequence[int]
    ) -> ActivationCache:
        """What is computed where the other recording is heard, and so much is said."""
        inputs = self._inputs_of(other)
        behind = torch.tensor([list(said)], dtype=torch.long).to(inputs["tokens"])
        inputs["tokens"] = torch.cat([inputs["tokens"], behind], 1)
        names = list(dict.fromkeys(site.hook for site, _ in rows))
        made: ActivationCache = self.model.run_with_cache(**inputs, names_filter=names)[1]
        return made

    def _inputs_of(self, other: Samples) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self.model.to_inputs(other, **self.asked)
        return made

    # --- Decoding ---------------------------------------------------------------------------------

    def _decoded(self, *interventions: Intervention) -> Generated:
        """Whisper prompts itself; Qwen2-Audio is given its prompt."""
        options = {"max_new_tokens": self.max_new_tokens, "interventions": list(interventions)}
        if self.model.config.prefix:
            found: Generated = self.model.generate(**self._inputs, **options)[0]
        else:
            found = self.model.generate(self.samples, **self.asked, **options)[0]
        return found

    def _decoded_rows(self, interventions: Sequence[Intervention]) -> list[str]:
        if not hasattr(self.model, "generate_rows"):
            return [self._decoded(one).text for one in interventions]
        limit = self.max_new_tokens
        heard = self.model.generate_rows(
            self.samples, list(interventions), max_new_tokens=limit, **self.asked
        )
        return [one.text for one in heard]
