"""Which numbers descriptors get."""

from __future__ import annotations

import fcntl
import os

_LOWEST_FD = 3


def above_stdio(fd: int) -> int:
    """Return `fd`, or another descriptor in its place if it is one of 0 to 2.

    In a program that has closed those, others go on to print there.

    Raises:
        OSError: there is none; `fd` is closed.
    """
    if fd >= _LOWEST_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
    finally:
        os.close(fd)
