"""Which shmcast a rank has: in front of all that it tells in a set-up, in every version alike."""

from __future__ import annotations

import struct

from shmcast import _core
from shmcast._version import __version__
from shmcast.errors import SegmentMismatch

_STAMP = struct.Struct("<8sI32s")  # the magic bytes, the layout version, the package's in ASCII
_MAGIC = b"shmcast\0"

SIZE = _STAMP.size
"""Of a stamp, in bytes."""


def stamp() -> bytes:
    """Return this process's."""
    return _STAMP.pack(_MAGIC, _core.LAYOUT_VERSION, __version__.encode())


def is_stamped(data: bytes | bytearray | memoryview) -> bool:
    """Return whether data begins with a stamp."""
    return len(data) >= SIZE and bytes(data[: len(_MAGIC)]) == _MAGIC


def check_stamp(data: bytes | bytearray | memoryview, name: str, label: str) -> None:
    """Find out whether another rank can be understood.

    Args:
        data: what it has told.
        name: how errors name it.
        label: how errors name this rank.

    Raises:
        SegmentMismatch: its shmcast has another layout version.
    """
    layout, version = 0, "of another kind"
    if is_stamped(data):
        _, layout, written = _STAMP.unpack_from(data)
        version = written.rstrip(b"\0").decode(errors="replace")
    if layout != _core.LAYOUT_VERSION:
        raise SegmentMismatch(
            f"{label}: set-up: {name} has shmcast {version}, with layout version {layout}; this "
            f"process has shmcast {__version__}, with layout version {_core.LAYOUT_VERSION}: let "
            "all ranks have the same version of shmcast"
        )
