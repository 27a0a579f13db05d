"""The end of any process from which this one reads ends its waits, whatever queue they are on.

An engine's driver reads the replies of its workers one after another. Each comes over a ring of its
own, and that of the one that is waited for does not tell that another has died.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable

from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.process import UNKNOWN_START, Pidfd, pid_namespace
from shmcast.compat._queues.diagnosis import Process
from shmcast.errors import PeerDied

_THREAD = "shmcast-engine"
_IN_ORDER = "exit code 0"

Told = Callable[[PeerDied], None]


class Watch:
    """Watches processes, by pidfds in one thread."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # whom the parent watches is its business

    def _begin(self) -> None:
        self._pidfds: dict[int, Pidfd] = {}  # by pid
        self._lock = threading.Lock()

    def add(self, process: Process, tell: Told) -> None:
        """Tell, in another thread, when a process ends otherwise than in order.

        Nothing is told where it can't be watched: of another pid namespace, say. Its ring then
        tells those who wait for it.
        """
        if process.namespace != pid_namespace():
            return
        with self._lock, contextlib.suppress(OSError):
            if process.pid not in self._pidfds:
                pidfd = self._pidfds[process.pid] = Pidfd(process.pid, UNKNOWN_START)
                ended = functools.partial(self._ended, process, pidfd, tell)
                epoll_thread(_THREAD).add(pidfd.fileno(), ended, once=True)

    def _ended(self, process: Process, pidfd: Pidfd, tell: Told, _events: int) -> None:
        how = pidfd.how()
        with self._lock:
            epoll_thread(_THREAD).remove(pidfd.fileno())
            self._pidfds.pop(process.pid, None)
            pidfd.close()
        if how != _IN_ORDER:
            text = f"{process.name} (pid {process.pid}) has died: {how or 'unknown how'}"
            tell(PeerDied(text, process.name, process.pid, how))
