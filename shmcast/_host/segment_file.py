"""A segment as its maker has it: its name and a descriptor, to be given up once and for all."""

from __future__ import annotations

import contextlib
import os

from shmcast._host.shared_memory import unlink


class SegmentFile:
    """This process's descriptor of a segment that it has made, and the segment's name.

    Nothing is given up in a fork. What a signal's handler interrupts can be done again: a
    descriptor that was closed, and may be another file's by now, is told from one that was not.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._identity = _identity(fd)
        self._owner_pid = os.getpid()

    def unlink(self) -> None:
        """Remove the name; idempotent."""
        if self._owner_pid == os.getpid():
            unlink(self.name)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self.fd < 0 or self._owner_pid != os.getpid():
            return
        with contextlib.suppress(OSError):  # it is closed
            if _identity(self.fd) == self._identity:
                os.close(self.fd)
        self.fd = -1


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
