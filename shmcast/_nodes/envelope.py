"""A message as one run of bytes for the network: header, lengths of the frames, frames.

Imported once torch is in use.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

MESSAGE, CLOSE, HEARTBEAT = 1, 2, 3
"""Kinds of envelopes: frames, the source's end, and nothing, to keep the way open."""

_HEADER = struct.Struct("<IIQQ")  # kind, number of frames, sequence number, bytes of it all

LEAST_BYTES = _HEADER.size
"""No envelope is smaller, and no estimate may be."""


@dataclass(frozen=True)
class Envelope:
    """One message, packed."""

    seq: int
    """Sequence number, from 1."""
    total: int
    """Bytes of header, lengths and frames."""
    nbytes: int
    """Bytes with the padding, up to the estimate it was packed for."""
    tensor: torch.Tensor
    """uint8, `nbytes` of them."""


def pack(frames: Sequence[memoryview], seq: int, estimate: int, kind: int = MESSAGE) -> Envelope:
    """Copy `frames`, as `views.flat_views` returns them, and pad them to `estimate` bytes."""
    lengths = [frame.nbytes for frame in frames]
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    total = _HEADER.size + len(table) + sum(lengths)
    array = np.empty(max(total, estimate), np.uint8)
    memory = array.data
    at = _HEADER.size + len(table)
    memory[:at] = _HEADER.pack(kind, len(frames), seq, total) + table
    for frame, length in zip(frames, lengths, strict=True):
        memory[at : at + length] = frame
        at += length
    array[total:] = 0  # none of this process's old memory
    return Envelope(seq, total, array.nbytes, torch.from_numpy(array))


def read_header(memory: memoryview) -> tuple[int, int, int, int]:
    """Return kind, number of frames, sequence number and total bytes of an envelope."""
    kind, frames, seq, total = _HEADER.unpack_from(memory)
    return kind, frames, seq, total


def unpack(memory: memoryview, frames: int, total: int) -> list[memoryview]:
    """Return the frames of an envelope, as views.

    Raises:
        ValueError: the lengths don't add up.
    """
    at = _HEADER.size + 8 * frames
    if at > total:
        raise ValueError(f"{frames} frames in {total} bytes")
    lengths = struct.unpack_from(f"<{frames}Q", memory, _HEADER.size)
    if at + sum(lengths) != total:
        raise ValueError(f"frames of {sum(lengths)} bytes in an envelope of {total}")
    views = []
    for length in lengths:
        views.append(memory[at : at + length])
        at += length
    return views
