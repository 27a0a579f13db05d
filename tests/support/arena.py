"""What tests of the arena look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shmcast import Reader, Writer
from tests.support.arena_roles import KIB, SECONDS, filled

PAGE = 4 * KIB
EXTENTS = 256


def address(array: Any) -> int:
    if isinstance(array, torch.Tensor):
        return array.data_ptr()
    return int(array.__array_interface__["data"][0])


def is_free(writer: Writer) -> bool:
    """Return whether the whole arena is one free extent."""
    assert writer.handle.arena is not None
    before = writer.statistics().arena_full
    writer.empty(writer.handle.arena.nbytes, np.uint8)
    return writer.statistics().arena_full == before


def check_whole(writer: Writer, *readers: Reader) -> None:
    """Check that the whole arena is free: send as much as it holds."""
    assert writer.handle.arena is not None
    assert is_free(writer)
    before = writer.statistics()
    sent = filled(writer.handle.arena.nbytes, 77)
    writer.send(sent, SECONDS)
    for reader in readers:
        assert np.array_equal(reader.recv(SECONDS, copy=False), sent)
    after = writer.statistics()
    assert (after.arena_full, after.arena_frames) == (before.arena_full, before.arena_frames + 1)


def extents(writer: Writer) -> list[int]:
    """Return the extents that the last message refers to."""
    return list(writer._end._ring.sent())


def send_uncopied(writer: Writer, obj: Any, frames: int = 1) -> None:
    """Send an object and check that none of its buffers was copied to another extent."""
    before = writer.statistics()
    lent = {lent.extent for lent in writer._end._lender._all()}  # type: ignore[union-attr]
    writer.send(obj, SECONDS)
    after = writer.statistics()
    assert set(extents(writer)) <= lent
    assert after.arena_frames == before.arena_frames + frames
    assert after.arena_full == before.arena_full
    # Nor was it streamed: the message is small.
    assert after.fragments - before.fragments == 1
