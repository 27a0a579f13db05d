"""The frames of a message as plain bytes, for the network."""

from __future__ import annotations

from collections.abc import Sequence
from pickle import PickleBuffer

from shmcast._codecs.base import Frame


def flat_views(frames: Sequence[Frame]) -> list[memoryview]:
    """Return the memory of contiguous buffers as views of bytes.

    Raises:
        TypeError, BufferError: `frames` is no sequence of contiguous buffers.
    """
    # (Unlike memoryview.cast(), it takes a zero in the shape, and any format.)
    return [PickleBuffer(frame).raw() for frame in frames]
