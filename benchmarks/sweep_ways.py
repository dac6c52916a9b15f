"""One sweep over heads, done in the ways that there are: each returns a number for every head.

All of them patch (or set to zero) what enters an attention's `out_proj`, in the order of our grids.
But for the loop, they encode each recording once, make every head a row of one decoder batch (in
chunks), and put nothing but the last position through the LM head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration

from hooked_asr import HookedWhisper, patching

Head = tuple[int, int]  # which attention, and which of its heads
METRIC = patching.logit_diff(1, 2)


@dataclass(frozen=True)
class Setting:
    """Both models over the same weights, two recordings, a text, and what is done to each head.

    `keys`: those who batch compute cross-attention's keys and values once, and hand copies of them
    to every row as a filled cache; otherwise each row computes its own.
    """

    ours: HookedWhisper
    theirs: WhisperForConditionalGeneration
    clean: Tensor
    reference: Tensor
    tokens: Tensor
    operation: str
    rows: int
    encoder: bool = False
    keys: bool = False

    @property
    def places(self) -> list[tuple[int, str]]:
        """Layer and name of every attention, as they stand in the Hugging Face model."""
        names = ["self_attn"] if self.encoder else ["self_attn", "encoder_attn"]
        stack = self.theirs.model.encoder if self.encoder else self.theirs.model.decoder
        return [(layer, name) for name in names for layer in range(len(stack.layers))]

    @property
    def attentions(self) -> list[Any]:
        stack = self.theirs.model.encoder if self.encoder else self.theirs.model.decoder
        return [getattr(stack.layers[layer], name) for layer, name in self.places]

    @property
    def heads(self) -> list[Head]:
        return [
            (i, head)
            for i, attention in enumerate(self.attentions)
            for head in range(attention.num_heads)
        ]

    @property
    def chunks(self) -> list[dict[int, list[tuple[int, int]]]]:
        """For each chunk, the rows in which each attention is changed, and the head of each."""
        chunks = []
        for start in range(0, len(self.heads), self.rows):
            chunk: dict[int, list[tuple[int, int]]] = {}
            for row, (i, head) in enumerate(self.heads[start : start + self.rows]):
                chunk.setdefault(i, []).append((row, head))
            chunks.append(chunk)
        return chunks

    @property
    def in_forward_order(self) -> list[int]:
        """The attentions as a forward passes them."""
        return sorted(range(len(self.places)), key=lambda i: (self.places[i][0], i))

    def measure(self, hidden: Tensor) -> Tensor:
        """The metric of each row, from the last position's hidden state `[row 1 d_model]`."""
        return METRIC(self.theirs.proj_out(hidden))


def sweep(s: Setting) -> Tensor:
    """This library."""
    parts = {"self_attn": "attn", "encoder_attn": "cross_attn"}
    stack = "encoder" if s.encoder else "decoder"
    heads = [(*s.places[i], head) for i, head in s.heads]
    return patching.sweep(
        s.ours,
        clean=(s.clean, s.tokens),
        reference=(s.reference, s.tokens) if s.operation == "replace" else None,
        sites=[f"{stack}.{layer}.{parts[name]}.{head}" for layer, name, head in heads],
        metric=METRIC,
        operation=s.operation,
        progress=False,
    ).values.flatten()


def loop(s: Setting) -> Tensor:
    """Forward-pre-hooks on the Hugging Face model, and a whole forward for each head."""
    kept = _entered(s, lambda: s.theirs(s.reference, decoder_input_ids=s.tokens))
    values = []
    for i, head in s.heads:
        with _changed(s, {i: [(0, head)]}, kept):
            logits = s.theirs(s.clean, decoder_input_ids=s.tokens).logits
        values.append(METRIC(logits))
    return torch.cat(values)


def hooks(s: Setting) -> Tensor:
    """The same hooks on batches of rows."""
    encoded = _encoded(s, s.clean)
    keys = _keys(s, encoded)
    kept = _entered(s, lambda: s.theirs.model(**_inputs(s, _encoded(s, s.reference), 1)))
    values = []
    for chunk in s.chunks:
        with _changed(s, chunk, kept):
            out = s.theirs.model(**_inputs(s, encoded, _n_rows(chunk), keys))
        values.append(s.measure(out.last_hidden_state[:, -1:]))
    return torch.cat(values)


def nnsight(s: Setting) -> Tensor:
    """Traces of nnsight over the same batches, each row edited in place."""
    from nnsight import NNsight

    model, encoded, kept = NNsight(s.theirs.model), _encoded(s, s.clean), {}
    keys = _keys(s, encoded)
    layers = model.decoder.layers
    if s.operation == "replace":
        with model.trace(**_inputs(s, _encoded(s, s.reference), 1)):
            for i in s.in_forward_order:
                layer, name = s.places[i]
                kept[i] = getattr(layers[layer], name).out_proj.input.save()
    values = []
    for chunk in s.chunks:
        with model.trace(**_inputs(s, encoded, _n_rows(chunk), keys)):
            for i in s.in_forward_order:
                if i in chunk:
                    layer, name = s.places[i]
                    _change(s, getattr(layers[layer], name).out_proj.input, chunk[i], kept.get(i))
            hidden = model.output.last_hidden_state[:, -1:].save()
        values.append(s.measure(hidden))
    return torch.cat(values)


def pyvene(s: Setting) -> Tensor:
    """Intervenable models of pyvene over the same batches, a function at each attention."""
    import pyvene

    def component(i: int) -> str:
        layer, name = s.places[i]
        return f"decoder.layers[{layer}].{name}.out_proj.input"

    encoded, kept = _encoded(s, s.clean), {}
    keys = _keys(s, encoded)
    if s.operation == "replace":
        collect = pyvene.CollectIntervention
        d_model, every = s.theirs.config.d_model, range(len(s.places))
        collecting = [
            {
                "component": component(i),
                "intervention": collect(embed_dim=d_model, keep_last_dim=True),
            }
            for i in every
        ]
        model = pyvene.IntervenableModel(collecting, model=s.theirs.model)
        (_, collected), _ = model(_inputs(s, _encoded(s, s.reference), 1))
        kept = dict(zip(every, collected, strict=True))
    values = []
    for chunk in s.chunks:
        functions = [
            {
                "component": component(i),
                "intervention": lambda z, source, i=i, own=own: _change(s, z, own, kept.get(i)),
            }
            for i, own in chunk.items()
        ]
        model = pyvene.IntervenableModel(functions, model=s.theirs.model)
        _, out = model(_inputs(s, encoded, _n_rows(chunk), keys), sources=[None] * len(functions))
        values.append(s.measure(out.last_hidden_state[:, -1:]))
    return torch.cat(values)


WAYS: dict[str, Callable[[Setting], Tensor]] = {
    "loop": loop,
    "hooks": hooks,
    "nnsight": nnsight,
    "pyvene": pyvene,
}


# --- What the others share ------------------------------------------------------------------------


def _encoded(s: Setting, mel: Tensor) -> Tensor:
    return s.theirs.model.encoder(mel).last_hidden_state


def _keys(s: Setting, encoded: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """Cross-attention's keys and values of a recording, layer by layer, where they are shared."""
    if not s.keys:
        return None
    out = s.theirs.model(
        encoder_outputs=(encoded,), decoder_input_ids=s.tokens[:, :1], use_cache=True
    )
    layers = out.past_key_values.cross_attention_cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _inputs(
    s: Setting, encoded: Tensor, n_rows: int, keys: list[tuple[Tensor, Tensor]] | None = None
) -> dict[str, Any]:
    """Of a decoder run; the tokens come first, by which pyvene counts rows."""
    inputs: dict[str, Any] = {"decoder_input_ids": s.tokens.expand(n_rows, -1)}
    if keys is None:
        encoded = encoded.expand(n_rows, -1, -1)
        return {**inputs, "encoder_outputs": (encoded,), "use_cache": False}
    heard = DynamicCache()
    for layer, kv in enumerate(keys):
        heard.update(*(x.expand(n_rows, -1, -1, -1) for x in kv), layer)
    past = EncoderDecoderCache(DynamicCache(), heard)  # without use_cache it would not be read
    return {**inputs, "encoder_outputs": (encoded,), "past_key_values": past, "use_cache": True}


def _n_rows(chunk: dict[int, list[tuple[int, int]]]) -> int:
    return sum(map(len, chunk.values()))


def _change(s: Setting, z: Tensor, rows: list[tuple[int, int]], kept: Tensor | None) -> Tensor:
    """One head of each row in place: the reference's, or nothing."""
    d_head = s.attentions[0].head_dim
    for row, head in rows:
        where = slice(head * d_head, (head + 1) * d_head)
        z[row, :, where] = 0.0 if kept is None else kept[0, :, where]
    return z


@contextmanager
def _changed(
    s: Setting, chunk: dict[int, list[tuple[int, int]]], kept: dict[int, Tensor]
) -> Iterator[None]:
    handles = [
        s.attentions[i].out_proj.register_forward_pre_hook(
            lambda module, args, i=i, own=own: (_change(s, args[0].clone(), own, kept.get(i)),)
        )
        for i, own in chunk.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entered(s: Setting, run: Callable[[], object]) -> dict[int, Tensor]:
    """What enters each `out_proj` in a run of the reference, where it is to replace something."""
    kept: dict[int, Tensor] = {}
    if s.operation != "replace":
        return kept
    handles = [
        attention.out_proj.register_forward_pre_hook(
            lambda module, args, i=i: kept.__setitem__(i, args[0])
        )
        for i, attention in enumerate(s.attentions)
    ]
    run()
    for handle in handles:
        handle.remove()
    return kept
