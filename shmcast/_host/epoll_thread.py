"""One thread of this process that sleeps until one of many file descriptors is ready."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
from collections.abc import Callable

from shmcast._host.descriptors import above_stdio

_log = logging.getLogger("shmcast")


class EpollThread:
    """Calls a handler whenever its file descriptor can be read, or written to.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._epoll = _epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def add(self, fd: int, handler: Callable[[int], None], once: bool = False) -> None:
        """Call `handler` with the events, in this thread, each time that `fd` can be read.

        Args:
            fd: may be closed after `remove` only.
            handler: must not wait; what it raises is logged.
            once: the first time only.
        """
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLONESHOT if once else 0))

    def also_write(self, fd: int, wanted: bool) -> None:
        """Call the handler, too, when `fd` can be written to, or no longer."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        """Forget `fd`; a call of its handler may be under way."""
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        self._handlers.pop(fd, None)

    def _run(self) -> None:
        while True:
            for fd, events in self._epoll.poll():
                self._call(fd, events)

    def _call(self, fd: int, events: int) -> None:
        # (Not in the loop, whose local would keep the last handler until there is another event.)
        handler = self._handlers.get(fd)
        if handler is None:
            return
        try:
            handler(events)
        except Exception:  # one handler's error must not end the others
            _log.exception("in thread %s", threading.current_thread().name)


def _epoll() -> select.epoll:
    """Return one whose descriptor nobody takes for standard input, output or error."""
    first = select.epoll()
    fd = above_stdio(os.dup(first.fileno()))
    first.close()
    return select.epoll.fromfd(fd)


@functools.cache
def epoll_thread(name: str) -> EpollThread:
    """Return this process's thread of that name, started when it is first needed."""
    return EpollThread(name)


os.register_at_fork(after_in_child=epoll_thread.cache_clear)  # threads stay behind
