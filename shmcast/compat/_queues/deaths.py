"""The end of any process from which this one reads ends its waits, whatever queue they are on.

An engine's driver reads the replies of its workers one after another. Each comes over a ring of its
own, and that of the one that is waited for does not tell that another has died.

A worker has gigabytes, and the kernel gives them back before a pidfd tells of its end. So a thread
for each of them waits for the first word of that; what it can't tell, the pidfd does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable

from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.first_word import FirstWord
from shmcast._host.process import UNKNOWN_START, Pidfd, how_it_ends, pid_namespace
from shmcast.compat._queues.diagnosis import Process
from shmcast.errors import PeerDied

_THREAD = "shmcast-engine"
_IN_ORDER = "exit code 0"
_SECONDS = 0.2  # from the first word until the process itself is about to end
_STEP = 0.001

Told = Callable[[PeerDied], None]


class Watch:
    """Watches processes."""

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
                args = (process, pidfd, tell, FirstWord(process.pid, process.first_word))
                threading.Thread(target=self._listen, args=args, name=_THREAD, daemon=True).start()

    def _listen(self, process: Process, pidfd: Pidfd, tell: Told, word: FirstWord) -> None:
        """Tell when a process begins to end."""
        word.wait()
        give_up = time.monotonic() + _SECONDS
        while not (how := how_it_ends(process.pid)) and time.monotonic() < give_up:
            time.sleep(_STEP)  # its threads end one after another
        if how:
            self._end(process, pidfd, tell, lambda: how)

    def _ended(self, process: Process, pidfd: Pidfd, tell: Told, _events: int) -> None:
        self._end(process, pidfd, tell, pidfd.how)

    def _end(self, process: Process, pidfd: Pidfd, tell: Told, ask: Callable[[], str]) -> None:
        """Tell how a process has ended, once."""
        with self._lock:
            if self._pidfds.get(process.pid) is not pidfd:
                return
            how = ask()
            epoll_thread(_THREAD).remove(pidfd.fileno())
            del self._pidfds[process.pid]
            pidfd.close()
        if how != _IN_ORDER:
            text = f"{process.name} (pid {process.pid}) has died: {how or 'unknown how'}"
            tell(PeerDied(text, process.name, process.pid, how))
