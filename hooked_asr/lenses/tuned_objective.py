"""What a translator is trained to: the model's own distributions, from the translated stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.lenses.reading import unembedded
from hooked_asr.lenses.tuned_streams import RunStreams
from hooked_asr.patching.operations import Inputs

_RIDGE = 1e-4  # of each input's variance, beside what little data asks for

Stream = Float[Tensor, "*_ d_model"]
# From a translated stream to logits, with all behind it frozen.
Read = Callable[[Stream], Float[Tensor, "row d_vocab"]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Streams of several runs `[depth ... d_model]`, and how they become logits."""

    streams: Float[Tensor, "depth *_ d_model"]
    read: Read

    def kls(self, lens: Any) -> Iterator[Float[Tensor, " row"]]:
        """KL(final ‖ site) in nats at each of the lens's sites, one after the other."""
        with torch.no_grad():
            final = self.read(self.streams[-1].float()).log_softmax(-1)
        for site, stream in zip(lens.sites, self.streams[:-1], strict=True):
            here = self.read(lens(site, stream.float())).log_softmax(-1)
            yield F.kl_div(here, final, reduction="none", log_target=True).sum(-1)


class Objective:
    """KL(final ‖ site) of the decoder's distributions, in float32 whatever the model's own type.

    A decoder's stream is translated, and read by the final norm and the unembedding. An encoder's
    is translated, and heard by the frozen decoder (pooled before that, where the model pools),
    which is forced with the transcript.
    """

    def __init__(self, model: Any, stack: str) -> None:
        self.stack = stack
        self.model: Any
        with model.unhooked():
            self.model = _wide(model) if stack == "encoder" else _Head(model)

    def batch(self, runs: Sequence[RunStreams]) -> Batch:
        """Several runs at once."""
        if self.stack == "decoder":
            return Batch(torch.cat([run.rows for run in runs], 1), self._unembedded)
        streams = torch.cat([run.streams for run in runs], 1)
        rest, said = _joined(runs)
        return Batch(streams, lambda stream: self._heard(stream, rest)[said])

    def _unembedded(self, stream: Stream) -> Float[Tensor, "row d_vocab"]:
        return unembedded(self.model, stream)

    def _heard(self, stream: Stream, rest: Inputs) -> Float[Tensor, "batch pos d_vocab"]:
        with self.model.unhooked():
            audio = self.model.encode(stream, start_at=self.model.config.encoder.n_layers)
            logits: Tensor = self.model(audio=audio, **rest)
        return logits


class _Head(nn.Module):
    """A decoder's end in float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder_final_ln = _wide(model.decoder_final_ln)
        self.unembed = _wide(model.unembed)


def _wide(module: Any) -> Any:
    """The module in float32; a copy, where it is in anything else."""
    if next(module.parameters()).dtype == torch.float32:
        return module
    return copy.deepcopy(module).float()


def _joined(runs: Sequence[RunStreams]) -> tuple[dict[str, Tensor], Tensor]:
    """The runs' inputs as one batch, tokens padded behind; and its positions that count."""
    longest = max(run.said.shape[1] for run in runs)

    def padded(row: Tensor) -> Tensor:
        return F.pad(row, (0, longest - row.shape[1]))

    rest = {}
    for name in runs[0].rest:
        rows = [run.rest[name] for run in runs]
        rest[name] = torch.cat(rows if name == "mel_mask" else [padded(row) for row in rows])
    return rest, torch.cat([padded(run.said) for run in runs])


# --- Where the training begins --------------------------------------------------------------------


@torch.no_grad()
def start_by_least_squares(lens: Any, runs: Iterator[RunStreams]) -> None:
    """Set each translator to the affine map that comes nearest to the last layer's stream.

    Ridge regression of what is still missing, in closed form, from sums over all rows in float64.
    Its penalty on the weight of an input is `d_model` times the input's variance: what one row for
    each input weighs, so that little data leaves the identity, and much of it decides alone.
    """
    sums: Any = None
    for run in runs:
        new = _Sums.of(run.rows)
        sums = new if sums is None else sums.plus(new)
    for i, one in enumerate(lens.translators):
        weight, bias = sums.solved(i)
        one.weight.copy_(weight)
        one.bias.copy_(bias)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over rows: how many, of the inputs and of what is missing, and of their products."""

    n: int
    x: Float[Tensor, "site d_model"]
    y: Float[Tensor, "site d_model"]
    xx: Float[Tensor, "site d_model d_model"]
    xy: Float[Tensor, "site d_model d_model"]

    @classmethod
    def of(cls, rows: Float[Tensor, "depth row d_model"]) -> _Sums:
        wide = rows.double()
        x, y = wide[:-1], wide[-1] - wide[:-1]
        return cls(x.shape[1], x.sum(1), y.sum(1), x.mT @ x, x.mT @ y)

    def plus(self, other: _Sums) -> _Sums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Sums(*(own + new for own, new in pairs))

    def solved(self, i: int) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:
        """Weight and bias of a site's translator."""
        x, y = self.x[i] / self.n, self.y[i] / self.n
        xx = self.xx[i] / self.n - x[:, None] * x
        xy = self.xy[i] / self.n - x[:, None] * y
        variance = xx.diagonal().clamp(min=1e-12)
        ridge = len(x) / self.n + _RIDGE
        weight = torch.linalg.solve(xx + torch.diag(ridge * variance), xy).mT
        return weight, y - weight @ x
