"""How many rows fit: bytes that a sweep takes, reckoned from the model's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hooked_asr.config import ModelConfig, StackConfig
from hooked_asr.errors import HookedASRError
from hooked_asr.patching.engine.rows import Row

_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_ON_CPU = 2**30
_FULL = 4  # bytes of a float32, as metrics read logits


class MemoryLimitError(HookedASRError):
    """A limit that not even one row fits in."""


def as_bytes(memory: int | str | None, device: torch.device) -> int:
    """A limit in bytes, from a number or a text; by default 1 GiB, on a GPU half of what is free.

    >>> as_bytes("1.5 GB", torch.device("cpu"))
    1500000000

    Raises `MemoryLimitError` for what is no size.
    """
    if memory is None:
        return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _ON_CPU
    if isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)?\s*", memory, re.IGNORECASE)
    if match is None:
        raise MemoryLimitError(f"memory is a number of bytes, or like '2 GiB'; got {memory!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def readable(n_bytes: int) -> str:
    """
    >>> readable(3 * 2**20)
    '3.0 MiB'
    """
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@dataclass(frozen=True)
class Costs:
    """Bytes of a sweep's parts, for `batch` rows of tokens over `n_clips` clips.

    `reads`: positions whose logits are measured.
    """

    config: ModelConfig
    itemsize: int
    batch: int
    n_clips: int
    n_pos: int
    n_reads: int

    def clean(self, n_streams: int, n_encoder_streams: int) -> int:
        """What stays for the whole sweep: streams that rows join from, keys, values, logits."""
        encoder, decoder = self.config.encoder, self.config.decoder
        audio = self.n_clips * encoder.n_ctx * encoder.d_model
        tokens = self.batch * self.n_pos * decoder.d_model
        kept = (n_encoder_streams + 1) * audio + (n_streams + 1) * tokens
        kept += 2 * decoder.n_layers * self.batch * self.n_pos * decoder.n_kv_heads * decoder.d_head
        if not self.config.prefix:
            kept += 2 * decoder.n_layers * self.n_clips * encoder.n_ctx * decoder.d_model
        return kept * self.itemsize + self.logits

    @property
    def logits(self) -> int:
        """One row's logits, as the model gives them and as a metric reads them."""
        return self.batch * self.n_reads * self.config.d_vocab * (self.itemsize + 3 * _FULL)

    def clean_pass(self) -> int:
        """What the clean run takes while it runs."""
        encoder = self.n_clips * self._front_end()
        return max(encoder, self.batch * self._layer(self.config.decoder, self.n_pos, self.n_pos))

    def row(self, row: Row, in_encoder: bool) -> int:
        """What one row takes while it runs."""
        decoder = self.config.decoder
        n_new = row.stop - row.start
        needed = self._layer(decoder, n_new, row.stop if row.start else 0)
        needed += self._maps(row.maps, decoder, n_new, row.stop)
        if row.own_audio or (in_encoder and not self.config.prefix):
            needed += self._own_audio()
        needed *= self.batch
        if not in_encoder:
            return needed
        encoder, n_ctx = self.config.encoder, self.config.encoder.n_ctx
        layer = self._layer(encoder, n_ctx, 0) + self._maps(row.maps, encoder, n_ctx, n_ctx)
        kept = n_ctx * encoder.d_model * self.itemsize
        return max(self.n_clips * max(layer, self._front_end()), needed + self.n_clips * kept)

    def stream(self, row: Row) -> int:
        """What of a row is there while logits are made."""
        width = self.config.decoder.d_model
        return 3 * self.batch * (row.stop - row.start) * width * self.itemsize

    def _layer(self, stack: StackConfig, n_new: int, n_past: int) -> int:
        """Activations of one layer that live at the same time, for one row."""
        # A block's streams and what is added to them; what attention makes, and copies of it for
        # the rows that read one recording; an MLP's inside, before and behind its activation.
        widths = 16 * stack.d_model + (4 if stack.gated_mlp else 3) * stack.d_mlp
        keys = 4 * n_past * max(stack.n_kv_heads, stack.n_heads if n_past else 0) * stack.d_head
        return (n_new * widths + keys) * self.itemsize

    def _maps(self, names: Iterable[str], stack: StackConfig, n_query: int, n_key: int) -> int:
        n_keys = [self.config.encoder.n_ctx if "cross_attn" in name else n_key for name in names]
        return 5 * stack.n_heads * n_query * max(n_keys, default=0) * self.itemsize

    def _own_audio(self) -> int:
        return 6 * self.config.encoder.n_ctx * self.config.decoder.d_model * self.itemsize

    def _front_end(self) -> int:
        encoder = self.config.encoder
        convolved = self.config.n_frames * (4 * encoder.d_model + 3 * self.config.front_end.n_mels)
        return max(convolved * self.itemsize, self._layer(encoder, encoder.n_ctx, 0))
