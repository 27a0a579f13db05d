"""Counts this user's threads that have endpoints on this node, across processes.

Each such thread holds a lock on one byte of the folder that all shared memory lies in, and whoever
wants to know counts the locks. There is no file to make, to clean up or to be corrupted; the kernel
takes a lock away when its process dies, however it dies. (`fcntl(2)`, open file description locks:
Linux 3.15.)
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path("/dev/shm")  # noqa: S108 (shared by the same processes as the segments are)

# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi0q")

# A user's bytes: one for each thread id (less than 2**22) and 9 random bits, which tell apart the
# threads of containers that number their threads alike.
_RANDOM_BITS = 9
_BYTES_PER_USER = 1 << (22 + _RANDOM_BITS)

# Nobody needs to be counted beyond. Any user can lock any byte of the folder: the worst that comes
# of it is that others are taken to be many, and park.
_ENOUGH = 1024


class Seat:
    """One endpoint's claim that its thread is a member. Made by `enter`."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self._pid = os.getpid()

    def leave(self) -> None:
        """Give the claim up; idempotent, and without effect in a fork of the process."""
        if self._pid == os.getpid():
            _register.remove(self, self.thread)


def enter() -> Seat:
    """List the calling thread until the seat is left or the process ends."""
    seat = Seat(threading.get_native_id())
    _register.add(seat, seat.thread)
    return seat


def members() -> int | None:
    """Count this user's threads with endpoints that may run on a CPU that the caller may use.

    Threads that are pinned to other CPUs take nothing from the caller. None where the kernel offers
    no such locks.
    """
    try:
        mine = os.sched_getaffinity(0)
        return sum(not mine.isdisjoint(_affinity(thread)) for thread in _register.threads())
    except OSError:
        return None


def _affinity(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except OSError:  # of another container, or just gone: it may run anywhere
        return os.sched_getaffinity(0)


class _Register:
    """This process's seats and locks."""

    def __init__(self) -> None:
        # A collected endpoint leaves its seat wherever the garbage collector runs, also inside of
        # these methods: they can be re-entered by remove() at any point.
        self._guard = threading.RLock()
        self._folder: int | None = None  # its descriptor owns the locks
        self._seats: dict[int, set[Seat]] = {}  # by thread
        self._offsets: dict[int, int] = {}  # of the locked bytes, by thread

    def add(self, seat: Seat, thread: int) -> None:
        with self._guard:
            self._seats.setdefault(thread, set()).add(seat)
            if thread not in self._offsets:
                salt = int.from_bytes(os.urandom(2), "little") % (1 << _RANDOM_BITS)
                self._offsets[thread] = thread << _RANDOM_BITS | salt
                self._lock(fcntl.F_RDLCK, self._offsets[thread])

    def remove(self, seat: Seat, thread: int) -> None:
        with self._guard:
            seats = self._seats.get(thread, set())
            seats.discard(seat)
            if not seats and (offset := self._offsets.pop(thread, None)) is not None:
                self._lock(fcntl.F_UNLCK, offset)

    def threads(self) -> Iterator[int]:
        """Return all listed threads, this process's own included; raise OSError without locks."""
        with self._guard:
            own = list(self._offsets)
        return itertools.chain(own, itertools.islice(self._others(), _ENOUGH))

    def _others(self) -> Iterator[int]:
        folder = self._open()
        base = os.getuid() * _BYTES_PER_USER
        unasked = [(base, base + _BYTES_PER_USER)]
        while unasked:
            begin, end = unasked.pop()
            # "Which lock is in the way of locking all of this?" Any one of them, never one's own.
            question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin, 0)
            answer = fcntl.fcntl(folder, fcntl.F_OFD_GETLK, question)
            kind, _, start, length, _ = _FLOCK.unpack(answer)
            if kind == fcntl.F_UNLCK:
                continue
            for byte in range(start, start + length):
                yield (byte - base) >> _RANDOM_BITS
            unasked += [
                (low, high) for low, high in ((begin, start), (start + length, end)) if low < high
            ]

    def _lock(self, kind: int, offset: int) -> None:
        byte = os.getuid() * _BYTES_PER_USER + offset
        with contextlib.suppress(OSError):  # where there are no locks, members() says so
            fcntl.fcntl(self._open(), fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))

    def _open(self) -> int:
        if self._folder is None:
            self._folder = os.open(_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._folder

    def forked(self) -> None:
        """Start anew in a forked child, which can't use the parent's endpoints or descriptor."""
        if self._folder is not None:
            os.close(self._folder)
        self.__init__()  # type: ignore[misc]


_register = _Register()
os.register_at_fork(after_in_child=_register.forked)
