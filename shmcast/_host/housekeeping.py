"""Work that nobody waits for: done now and then, beside the program where it takes long."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable


class Housekeeping:
    """Does some work at most once in so many seconds in each process.

    Args:
        work: what to do. Its errors are nobody's business.
        takes_long: whether to do it in a thread of its own now.
        seconds: from one time to the next.
    """

    def __init__(
        self, work: Callable[[], object], takes_long: Callable[[], bool], seconds: float
    ) -> None:
        self._work = work
        self._takes_long = takes_long
        self._seconds = seconds
        self._pid = 0  # of the process that has done it last; its forks have not
        self._next = 0.0

    def do(self) -> None:
        """Do it, or begin to, if it is time."""
        now = time.monotonic()
        if self._pid == os.getpid() and now < self._next:
            return
        self._pid, self._next = os.getpid(), now + self._seconds
        if not self._takes_long():
            self._try()
            return
        with contextlib.suppress(RuntimeError):  # no more threads here, or the program is ending
            threading.Thread(target=self._try, name="shmcast-housekeeping", daemon=True).start()

    def _try(self) -> None:
        with contextlib.suppress(Exception):
            self._work()
