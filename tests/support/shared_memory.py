"""A /dev/shm of one's own, as a container has it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.support.permissions import NotPermitted

SHM = Path("/dev/shm")

_PRIVATE, _RECURSIVE, _NEW_MOUNTS = 1 << 18, 1 << 14, 0x00020000


def make_private(nbytes: int | None = None) -> None:
    """Give this process, and those that it starts from now on, a /dev/shm of its own.

    Args:
        nbytes: its size; None: half of the machine's memory.

    Raises:
        NotPermitted: this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = None if nbytes is None else f"size={nbytes}".encode()
    if libc.unshare(_NEW_MOUNTS) != 0:
        raise NotPermitted.because("can't make a mount namespace")
    for done in (
        libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options),
    ):
        if done != 0:
            raise NotPermitted.because("can't mount a /dev/shm")


def segments() -> set[str]:
    """Return the names of all segments in this /dev/shm, whoever made them."""
    return {path.name for path in SHM.glob("shmcast-*")}


def segments_of(*pids: int) -> set[str]:
    """Return the names of those segments that these processes have made."""
    return {name for name in segments() if int(name.split("-")[3]) in pids}
