"""Word of a process's end when that begins, long before the kernel is done with it.

A pidfd can be read when a process's memory has been given back: tenths of a second for gigabytes.
Before that, the kernel marks the robust mutexes that its threads hold, and wakes who waits for one.
So a thread of each process holds one for good, in memory that others can map.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading

from shmcast._host.descriptors import above_stdio

_NAME = "shmcast-first-word"
_PSHARED, _ROBUST = 1, 1  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
_ATTRIBUTE_BYTES = 64  # as many as no C library's pthread_mutexattr_t has
_DIED = errno.EOWNERDEAD

_offered: list[int] = []  # the descriptor, once there is one
_lock = threading.Lock()


def offer() -> int:
    """Return a descriptor by whose number others can wait for this process's end; idempotent.

    Raises:
        OSError: there can't be one.
    """
    with _lock:
        if not _offered:
            fd = above_stdio(os.memfd_create(_NAME))
            os.truncate(fd, mmap.PAGESIZE)
            mutex = _Mutex(fd)
            mutex.make()
            is_held = threading.Event()
            holder = threading.Thread(
                target=mutex.hold_for_good, args=(is_held,), name=_NAME, daemon=True
            )
            holder.start()
            is_held.wait()
            _offered.append(fd)
        return _offered[0]


class FirstWord:
    """What another process offers.

    Args:
        pid: of a process of this user's, in this pid namespace.
        fd: what `offer` returned there.

    Raises:
        OSError: it has ended, has closed the descriptor, or may not be asked.
    """

    def __init__(self, pid: int, fd: int) -> None:
        path = f"/proc/{pid}/fd/{fd}"
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):  # noqa: PTH115 (no file system's)
            raise FileNotFoundError(errno.ENOENT, "it offers no word of its end", path)
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mutex = _Mutex(opened)
        finally:
            os.close(opened)

    def wait(self) -> None:
        """Wait until the process begins to end.

        For a thread of its own: nothing else ends this, no signal either.
        """
        self._mutex.wait_for_holder()


class _Mutex:
    """A robust mutex at the beginning of a file of one page."""

    def __init__(self, fd: int) -> None:
        self._libc = ctypes.CDLL(None)
        self._at = (ctypes.c_char * mmap.PAGESIZE).from_buffer(mmap.mmap(fd, mmap.PAGESIZE))

    def make(self) -> None:
        attribute = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        self._call("pthread_mutexattr_init", attribute)
        self._call("pthread_mutexattr_setpshared", attribute, _PSHARED)
        self._call("pthread_mutexattr_setrobust", attribute, _ROBUST)
        self._call("pthread_mutex_init", self._at, attribute)

    def hold_for_good(self, is_held: threading.Event) -> None:
        """Lock it, and never return: the thread's end would be taken for the process's."""
        _block_signals()
        self._call("pthread_mutex_lock", self._at)
        is_held.set()
        while True:
            self._libc.pause()

    def wait_for_holder(self) -> None:
        """Wait until its holder has ended, and let the next one know."""
        _block_signals()
        if self._libc.pthread_mutex_lock(self._at) == _DIED:
            self._call("pthread_mutex_consistent", self._at)
        self._call("pthread_mutex_unlock", self._at)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._libc, name)(*arguments)
        if code:
            raise OSError(code, f"{name}: {os.strerror(code)}")


def _block_signals() -> None:
    """Leave signals to other threads: who waits there for one is woken by it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _forget() -> None:
    """Offer anew: in a fork's child, the thread stayed behind."""
    global _lock  # (the parent's other thread may have held it)
    _lock = threading.Lock()
    while _offered:
        os.close(_offered.pop())


os.register_at_fork(after_in_child=_forget)
