"""Grey pictures as PNG, without a library for pictures."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from jaxtyping import UInt8


def grey_png(pixels: UInt8[np.ndarray, "row column"]) -> bytes:
    """An 8-bit grey picture, 0 black; the first row is the top.

    Source: Portable Network Graphics (third edition, W3C), sections 5 and 7.2: each row with a
    filter byte (0, none) before it, deflated.
    """
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def data_uri(kind: str, content: bytes) -> str:
    """
    >>> data_uri("audio/flac", b"fLaC")
    'data:audio/flac;base64,ZkxhQw=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
