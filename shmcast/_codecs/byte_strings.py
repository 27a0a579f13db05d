"""Codec: large bytes objects and bytearrays, whose bytes are beside the pickle.

The core writes calls of these functions into a pickle, by name: see core/pickle/pieces.hpp.
"""

from __future__ import annotations

from shmcast._codecs.base import Received


def bytes_of(buffer: Received) -> bytes:
    """Return the bytes object of a frame: a copy, since such an object owns its memory."""
    return bytes(buffer)


def bytearray_of(buffer: Received) -> bytearray:
    """Return the bytearray of a frame: the frame itself, or a copy of what is in the arena."""
    return buffer if isinstance(buffer, bytearray) else bytearray(buffer)
