"""A model as a graph: what is written to its residual streams, and what reads it there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_asr.config import ModelConfig, StackConfig
from hooked_asr.errors import HookedASRError

Edges = Bool[Tensor, "receiver sender"]


class GraphError(HookedASRError):
    """A sender, receiver or edge that a model's graph does not have."""


@dataclass(frozen=True)
class Write:
    """A part that writes to a residual stream: an embedding, an attention or an MLP.

    - `hook`: where what it writes is seen; for an attention `hook_z`, which its `W_O` carries on.
    - `heads`: of an attention, each a sender of its own; None for a part that is one sender.
    """

    part: str
    hook: str
    heads: int | None = None

    @property
    def labels(self) -> list[str]:
        if self.heads is None:
            return [self.part]
        return [f"{self.part}.h{head}" for head in range(self.heads)]


@dataclass(frozen=True)
class Read:
    """A place where a residual stream is read, through a norm, by one receiver or by each head.

    - `hook`: what the receivers read, each its own copy; the stream's own hook for a part that is
      its only reader (`logits`, `audio`).
    - `stream`: the hook of the stream in front of the norm; `norm`: its path, None for none.
    - `n_sources`: it reads the writes from `first_source` on, so many of them.
    - `projection`: "q", "k" or "v" of an attention; `heads` are those of that projection.
    """

    part: str
    hook: str
    stream: str
    norm: str | None
    first_source: int
    n_sources: int
    projection: str | None = None
    heads: int | None = None

    @property
    def labels(self) -> list[str]:
        if self.heads is None:
            return [self.part]
        return [f"{self.part}.h{head}.{self.projection}" for head in range(self.heads)]

    @property
    def name(self) -> str:
        return self.part if self.projection is None else f"{self.part}.{self.projection}"

    @property
    def sources(self) -> range:
        """Places in `Graph.writes` of what it reads."""
        return range(self.first_source, self.first_source + self.n_sources)


@dataclass(frozen=True)
class Graph:
    """Senders and receivers, in the order in which a forward comes by them.

    A sender is an embedding (the stream that enters the first layer), a head, an MLP, or `audio`
    where the audio stands among the tokens. A receiver is a head's query, key or value, an MLP,
    `logits`, or `audio`. An edge leads from each sender to each receiver that reads its stream
    behind it. Where queries share keys in groups, a receiver `h1.k` is the second head of keys.

    A tensor over edges is `[receiver sender]`.
    """

    writes: list[Write]
    reads: list[Read]

    @cached_property
    def senders(self) -> list[str]:
        return [label for write in self.writes for label in write.labels]

    @cached_property
    def receivers(self) -> list[str]:
        return [label for read in self.reads for label in read.labels]

    @cached_property
    def columns(self) -> list[slice]:
        """Each write's senders."""
        return _spans(len(write.labels) for write in self.writes)

    @cached_property
    def rows(self) -> list[slice]:
        """Each read's receivers."""
        return _spans(len(read.labels) for read in self.reads)

    @cached_property
    def edges(self) -> Edges:
        """Where there is an edge."""
        there = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for read, row in zip(self.reads, self.rows, strict=True):
            for source in read.sources:
                there[row, self.columns[source]] = True
        return there

    @cached_property
    def feeds(self) -> Edges:
        """Which receivers are a sender's own inputs."""
        own = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        by_part = {write.part: place for place, write in enumerate(self.writes)}
        for read, row in zip(self.reads, self.rows, strict=True):
            if read.part not in by_part:  # the logits
                continue
            column = self.columns[by_part[read.part]]
            if read.heads is None:
                own[row, column] = True
            else:
                group = (column.stop - column.start) // read.heads
                own[row, column] = torch.eye(read.heads).repeat_interleave(group, 1).bool()
        return own

    @cached_property
    def inputs(self) -> Bool[Tensor, " sender"]:
        """Which senders are inputs: nothing in the graph feeds them."""
        return ~self.feeds.any(0)

    def place(self, sender: str, receiver: str) -> tuple[int, int]:
        """An edge's row and column, as in a tensor over edges.

        Raises `GraphError` where there is no such edge.
        """
        for label, labels, what in (
            (sender, self.senders, "sender"),
            (receiver, self.receivers, "receiver"),
        ):
            if label not in labels:
                near = difflib.get_close_matches(label, labels, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see graph"
                raise GraphError(f"no {what} {label!r}; {hint}")
        row, column = self.receivers.index(receiver), self.senders.index(sender)
        if not self.edges[row, column]:
            raise GraphError(f"{receiver!r} reads no stream that {sender!r} wrote to before")
        return row, column


def graph_from(fields: Mapping[str, Any]) -> Graph:
    """A graph from its fields, as `dataclasses.asdict` gives them."""
    return Graph(
        [Write(**write) for write in fields["writes"]], [Read(**read) for read in fields["reads"]]
    )


def computation_graph(config: ModelConfig) -> Graph:
    """The graph of a model, from its encoder's input to its logits.

    The decoder hears the encoder through each cross-attention head's keys and values; or, where
    audio is a prefix, through `audio`: pooling, final norm and projector together, which read the
    encoder's stream and write to the decoder's embedding.
    """
    builder = _Builder()
    builder.write("encoder.embed", "encoder.0.hook_resid_pre")
    for layer in range(config.encoder.n_layers):
        builder.attention(f"encoder.{layer}", "attn", "ln1", "hook_resid_pre", config.encoder)
        builder.mlp(f"encoder.{layer}", "ln2", "hook_resid_mid")
    heard = f"encoder.{config.encoder.n_layers - 1}.hook_resid_post"
    encoder = range(len(builder.writes))
    if config.prefix:
        builder.read("audio", heard, heard, None)
        builder.write("audio", "decoder.0.hook_resid_pre")
    builder.first = len(encoder)
    builder.write("decoder.embed", "decoder.0.hook_resid_pre")
    for layer in range(config.decoder.n_layers):
        block = f"decoder.{layer}"
        builder.attention(block, "attn", "ln1", "hook_resid_pre", config.decoder)
        if config.prefix:
            builder.mlp(block, "ln2", "hook_resid_mid")
        else:
            builder.cross_attention(block, heard, encoder, config.decoder)
            builder.mlp(block, "ln3", "hook_resid_mid_cross")
    end = f"decoder.{config.decoder.n_layers - 1}.hook_resid_post"
    builder.read("logits", end, end, None)
    return Graph(builder.writes, builder.reads)


class _Builder:
    """Reads and writes as they are met; `first` is the first write to the stream at hand."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.first = 0

    def write(self, part: str, hook: str, heads: int | None = None) -> None:
        self.writes.append(Write(part, hook, heads))

    def read(
        self,
        part: str,
        hook: str,
        stream: str,
        norm: str | None,
        projection: str | None = None,
        heads: int | None = None,
        sources: range | None = None,
    ) -> None:
        sources = sources or range(self.first, len(self.writes))
        span = (sources.start, len(sources))
        self.reads.append(Read(part, hook, stream, norm, *span, projection, heads))

    def attention(self, block: str, name: str, norm: str, stream: str, stack: StackConfig) -> None:
        part = f"{block}.{name}"
        for projection, heads in _heads(stack).items():
            self._projection(part, f"{block}.{stream}", f"{block}.{norm}", projection, heads)
        self.write(part, f"{part}.hook_z", stack.n_heads)

    def cross_attention(self, block: str, heard: str, encoder: range, stack: StackConfig) -> None:
        part = f"{block}.cross_attn"
        for projection, heads in _heads(stack).items():
            if projection == "q":
                self._projection(part, f"{block}.hook_resid_mid", f"{block}.ln2", "q", heads)
            else:
                self._projection(part, heard, "encoder_final_ln", projection, heads, encoder)
        self.write(part, f"{part}.hook_z", stack.n_heads)

    def mlp(self, block: str, norm: str, stream: str) -> None:
        part = f"{block}.mlp"
        self.read(part, f"{part}.hook_in", f"{block}.{stream}", f"{block}.{norm}")
        self.write(part, f"{block}.hook_mlp_out")

    def _projection(
        self,
        part: str,
        stream: str,
        norm: str,
        projection: str,
        heads: int,
        sources: range | None = None,
    ) -> None:
        hook = f"{part}.hook_{projection}_input"
        self.read(part, hook, stream, norm, projection, heads, sources)


def _heads(stack: StackConfig) -> dict[str, int]:
    """An attention's projections, and how many heads each has."""
    return {"q": stack.n_heads, "k": stack.n_kv_heads, "v": stack.n_kv_heads}


def _spans(lengths: Iterable[int]) -> list[slice]:
    spans, start = [], 0
    for length in lengths:
        spans.append(slice(start, start + length))
        start += length
    return spans
