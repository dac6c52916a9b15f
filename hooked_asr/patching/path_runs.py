"""The two runs of path patching."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_asr.config import STACKS
from hooked_asr.interventions import Intervention, Replace, Site
from hooked_asr.patching.operations import Inputs
from hooked_asr.patching.path_ends import LOGITS, Ends, Place
from hooked_asr.shapes import Logits

Stream = Float[Tensor, "_ _ _"]  # of either stack


@dataclass(frozen=True)
class PathRuns:
    """What all runs share.

    - `inputs`: the clean run's, with the encoder's output in place of frames where neither a sender
      nor a receiver is in the encoder.
    - `clean`, `reference`: what is needed of what these runs gave.
    """

    ends: Ends
    receivers: list[Site]
    inputs: Inputs
    clean: Inputs
    clean_logits: Logits
    reference: Inputs
    reference_logits: Logits

    @classmethod
    def of(
        cls,
        ends: Ends,
        clean: Inputs,
        reference: Inputs,
        senders: list[Site],
        receivers: list[Site],
    ) -> PathRuns:
        """Run both, and keep what the paths between these need."""
        model = ends.model
        if all(Place.of(site.hook).stack == "decoder" for site in [*senders, *receivers]):
            clean = model.encoded(clean)
        sent = list(dict.fromkeys(site.hook for site in senders))
        kept = {*ends.frozen, *sent, *_streams(model, receivers), "hook_encoder_out"}
        passed = [
            hook
            for hook in kept
            if clean.get("mel") is not None or Place.of(hook).stack == "decoder"
        ]
        clean_logits, gave = model.run_with_cache(**clean, names_filter=passed)
        reference_logits, other = model.run_with_cache(**reference, names_filter=sent)
        return cls(ends, receivers, clean, gave, clean_logits, other, reference_logits)

    def patched(self, senders: list[Site]) -> Logits:
        """The logits when these senders, as in the reference, are heard by the receivers alone."""
        read = self.read(senders)
        if LOGITS in read:
            return read[LOGITS]
        hooks = [Intervention(site, Replace(read)) for site in self.receivers]
        first = Place.of(self.receivers[0].hook)
        inputs = self._entering(first, self.stream(first.stack, first.layer or 0))
        logits: Logits = self._model.run_with_hooks(**inputs, fwd_hooks=hooks)
        return logits

    def read(self, senders: list[Site]) -> Inputs:
        """What the receivers read in the first run, by hook."""
        # A float16 encoder's layers clamp their stream: there it is no sum.
        if self.ends.direct and len(senders) == 1 and self._model.dtype != torch.float16:
            return self.read_directly(senders[0])
        return self.read_in_a_whole_run(senders)

    def read_in_a_whole_run(self, senders: list[Site]) -> Inputs:
        """The first run as it is defined."""
        hooks = [*self._freeze(""), *self._send(senders)]
        _, read = self._model.run_with_cache(
            **self.inputs, names_filter=[site.hook for site in self.receivers], fwd_hooks=hooks
        )
        return dict(read)

    def read_directly(self, sender: Site) -> Inputs:
        """The same, where everything is frozen, from a run of the receivers' own layers alone.

        What enters a layer behind the sender's is the clean stream and what the sender writes more:
        the frozen parts between them write what they wrote.
        """
        written = _Written(self, sender)
        read: dict[str, Tensor] = {}
        for place, sites in groupby(self.receivers, lambda site: _layer_of(site.hook)):
            names = list(dict.fromkeys(site.hook for site in sites))
            read |= self._read_in_layer(place, names, written)
        return read

    def _read_in_layer(
        self, place: Place, names: list[str], written: _Written
    ) -> dict[str, Tensor]:
        """What receivers in one layer (or the logits) read of a sender."""
        stack = place.stack
        layer = self._n_layers(stack) if place.layer is None else place.layer
        inputs = self._entering(place, self.stream(stack, layer) + written.before(stack, layer))
        if "audio" in inputs and (heard := written.audio) is not None:
            inputs["audio"] = heard
        if place.layer is not None:
            inputs = {name: value for name, value in inputs.items() if name != "tokens"}
            inputs["stop_at"] = f"{stack}.{layer + 1}"
        hooks = self._freeze(f"{stack}.{layer}.")
        if (Place.of(written.sender.hook).stack, written.layer) == (stack, layer):
            hooks += self._send([written.sender])
        _, read = self._model.run_with_cache(**inputs, names_filter=names, fwd_hooks=hooks)
        return dict(read)

    # --- What runs start from ---------------------------------------------------------------------

    def _entering(self, place: Place, resid: Stream) -> dict[str, Any]:
        """The inputs of a run that this stream enters, at a layer or behind the last."""
        layer = self._n_layers(place.stack) if place.layer is None else place.layer
        inputs: dict[str, Any] = {n: x for n, x in self.inputs.items() if n.endswith("_mask")}
        inputs |= {"resid": resid, "start_at": f"{place.stack}.{layer}"}
        if place.stack == "encoder":
            inputs["tokens"] = self.inputs["tokens"]
        elif not self._model.config.prefix:
            inputs["audio"] = self.audio
        return inputs

    def stream(self, stack: str, layer: int) -> Stream:
        """The clean stream that enters a layer, or that leaves the last."""
        if layer == self._n_layers(stack):
            return self.clean[f"{stack}.{layer - 1}.hook_resid_post"]
        return self.clean[f"{stack}.{layer}.hook_resid_pre"]

    @cached_property
    def audio(self) -> Float[Tensor, "_ _ d_enc"]:
        """The encoder's clean output."""
        given = self.inputs.get("audio")
        return self.clean["hook_encoder_out"] if given is None else given

    def _freeze(self, within: str) -> list[Intervention]:
        """Interventions that hold the frozen parts, of a layer or of all that the run passes."""
        there = [name for name in self.ends.frozen if name in self.clean]
        held = [name for name in there if name.startswith(within)]
        return [Intervention(Site(name), Replace(self.clean)) for name in held]

    def _send(self, senders: list[Site]) -> list[Intervention]:
        return [Intervention(site, Replace(self.reference)) for site in senders]

    def _n_layers(self, stack: str) -> int:
        n_layers: int = self._model.config.stack(stack).n_layers
        return n_layers

    @property
    def _model(self) -> Any:
        return self.ends.model


@dataclass(frozen=True)
class _Written:
    """What a sender writes more in the reference than in the clean run, wherever that arrives."""

    runs: PathRuns
    sender: Site

    @property
    def layer(self) -> int | None:
        return Place.of(self.sender.hook).layer

    def before(self, stack: str, layer: int) -> Tensor:
        """What has been added to the stream that enters a layer; nothing, if that comes first."""
        own = Place.of(self.sender.hook)
        if own.stack == stack and (own.layer is None or own.layer < layer):
            return self.there
        if own.stack == "encoder" != stack and self.runs.ends.model.config.prefix:
            return self._in_the_prompt
        return torch.zeros(())

    @cached_property
    def there(self) -> Stream:
        """What is added to the sender's own stream."""
        hook, clean = self.sender.hook, self.runs.clean[self.sender.hook]
        model, own = self.runs.ends.model, Place.of(hook)
        with model.hooks([Intervention(self.sender, Replace(self.runs.reference))]):
            more: Tensor = model.hook_points[hook](clean) - clean
        part, _, leaf = own.name.rpartition(".")
        if leaf == "hook_result":
            return more.sum(-2)
        if not part:  # it is in the stream
            return more
        of_part = model.get_submodule(f"{own.stack}.{own.layer}.{part}")
        written: Tensor
        if leaf == "hook_z":
            written = more.flatten(-2) @ of_part.o_proj.weight.T
        else:
            written = more @ of_part.W_out
        return written

    @property
    def audio(self) -> Tensor | None:
        """The encoder's output, where cross-attention hears the sender by it."""
        from_encoder = Place.of(self.sender.hook).stack == "encoder"
        return self._encoded if from_encoder and not self.runs.ends.model.config.prefix else None

    @cached_property
    def _encoded(self) -> Float[Tensor, "_ _ d_enc"]:
        """The encoder's output with what has been added: through its own norm, unfrozen."""
        model = self.runs.ends.model
        n_layers = model.config.encoder.n_layers
        end = self.runs.stream("encoder", n_layers) + self.there
        audio: Tensor = model.encode(end, start_at=n_layers)
        return audio

    @cached_property
    def _in_the_prompt(self) -> Stream:
        """What is added to the decoder's stream, where the audio stands among its tokens."""
        inputs = {name: value for name, value in self.runs.inputs.items() if name != "mel"}
        entering: Tensor = self.runs.ends.model(**inputs, audio=self._encoded, stop_at="decoder.0")
        return entering - self.runs.stream("decoder", 0)


def _streams(model: Any, receivers: list[Site]) -> set[str]:
    """The hooks of the streams that a run to these receivers may start from."""
    streams = {"decoder.0.hook_resid_pre"}
    for stack in STACKS:
        streams.add(f"{stack}.{model.config.stack(stack).n_layers - 1}.hook_resid_post")
    places = [Place.of(site.hook) for site in receivers]
    return streams.union(
        f"{place.stack}.{place.layer}.hook_resid_pre" for place in places if place.layer is not None
    )


def _layer_of(hook: str) -> Place:
    return replace(Place.of(hook), name="")
