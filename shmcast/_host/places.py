"""The locks by which the members of a segment say that they live."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from shmcast import _core
from shmcast._host.signals import pass_on


class Places:
    """The places of a segment's members, one byte each, which a member locks while it takes part.

    The kernel drops the lock when the process ends or executes another program, and so tells the
    others, in whatever pid or time namespace they are.

    Args:
        fd: a descriptor of the segment, which must stay open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = _file_of(fd)
        self._pid = os.getpid()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def hold(self, place: int) -> _core.LifeLock | None:
        """Lock a place; None where there are no such locks, or another process has it."""
        try:
            return _core.LifeLock(self._fd, place)
        except OSError as error:
            pass_on(error)
            return None

    @contextlib.contextmanager
    def holding(self, place: int) -> Iterator[_core.LifeLock | None]:
        """Lock a place for who is about to be made in the block; if that fails, unlock it."""
        lock = self.hold(place)
        try:
            yield lock
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def is_held(self, place: int) -> bool | None:
        """Return whether somebody has locked a place; None where that can't be known."""
        if _file_of(self._fd) != self._file:
            return None  # somebody has closed our descriptor, and may have opened another file
        return _core.is_locked(self._fd, place)

    def close(self) -> None:
        """Close the descriptor, unless it is not ours any more; idempotent."""
        if self._fd >= 0 and self._pid == os.getpid() and _file_of(self._fd) == self._file:
            os.close(self._fd)
        self._fd = -1


def _file_of(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError as error:
        pass_on(error)
        return None
    return found.st_dev, found.st_ino
