"""`Awaiting`: how tasks of an event loop wait for what an end receives.

It knows when somebody has to look, and who can wake the loop. It does not know what is received.

A task looks, which arms the end's pipe if there is nothing, and awaits a byte in it. Whoever sends
opens the pipe and writes the byte. Where that is not known to work yet, the loop also looks by
itself now and then; and where it does not, a thread stands in for those who can't.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable

from shmcast import _core
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.loops import Loop, running, running_key
from shmcast._host.process import pid_namespace
from shmcast._host.system_errors import explained

FIRST_INTERVAL = 0.001
LONGEST_INTERVAL = 0.05
"""Seconds between looks while it is not known whether all who send can wake the loop."""
USUAL_INTERVAL = 1.0
"""Seconds between looks at who has come and gone."""


class Awaiting:
    """The pipe of an end, and the loop that waits for it.

    Args:
        core: the end.
        senders: returns how many there are who may wake the loop.
        label: how errors name the end.
    """

    def __init__(self, core: _core.Awaitable, senders: Callable[[], int], label: str) -> None:
        self._core = core
        self._senders = senders
        self._label = label
        self._loop: Loop | None = None
        self._lock = threading.Lock()
        self._interval = FIRST_INTERVAL
        self._stand_in: threading.Thread | None = None
        self._is_polled = False

    async def begin(self, timeout: float | None) -> Looking:
        """Begin to wait in the running loop; look before each wait, and once before the first.

        Raises:
            InvalidArgument: `timeout` is no number of seconds.
            RuntimeError: no loop runs.
            _core.EndpointClosed: the end is closed.
            _core.ConcurrentUse: tasks of another loop wait.
        """
        seconds = check_timeout(timeout, self._label, "recv_async")
        loop = self._enter()
        await loop.enter()
        return Looking(loop, None if seconds is None else time.monotonic() + seconds)

    def fileno(self) -> int:
        """Return a descriptor that is readable when a call that has found nothing may find some."""
        fd = self._listen()
        self._is_polled = True
        self._core.rearm()
        return fd

    def found_nothing(self) -> None:
        """Let the descriptor become readable again, if somebody polls it."""
        if self._is_polled:
            self._core.rearm()

    def close(self) -> None:
        """Leave the loop, and close the pipe. From any thread; once the end is closed."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            self._core.close_pipe()
        else:
            loop.leave(self._core.close_pipe)

    def _enter(self) -> Loop:
        key = running_key()
        loop = self._loop
        if loop is not None and loop.key is key:
            return loop
        with self._lock:
            if self._loop is not None and self._loop.is_in_use:
                raise _core.ConcurrentUse
            fd = self._listen()
            if self._loop is not None:
                self._loop.leave(lambda: None)
            self._interval = FIRST_INTERVAL
            self._loop = loop = running(self._core, fd, self._next_interval)
            return loop

    def _listen(self) -> int:
        try:
            return self._core.listen(pid_namespace())
        except OSError as error:
            raise explained(error, f"{self._label}: a pipe for the event loop") from error

    def _next_interval(self) -> float:
        if self._stand_in is not None:
            return USUAL_INTERVAL
        if self._core.refused():
            self._call_stand_in()
            return FIRST_INTERVAL  # it knows nothing of what was armed before
        if self._core.opened() >= self._senders():
            return USUAL_INTERVAL
        seconds = self._interval
        self._interval = min(2 * seconds, LONGEST_INTERVAL)
        return seconds

    def _call_stand_in(self) -> None:
        self._core.expect_stand_in()
        self._stand_in = threading.Thread(
            target=self._core.stand_in, name=f"shmcast: {self._label}", daemon=True
        )
        self._stand_in.start()


class Looking:
    """One call that waits.

    Args:
        loop: where.
        ends: until when, by `time.monotonic`; None: for ever.
    """

    def __init__(self, loop: Loop, ends: float | None) -> None:
        self._loop = loop
        self._ends = ends

    def again(self) -> Awaitable[None]:
        """Wait until it is worth another look.

        Raises:
            _core.TimedOut: it is too late for that.
        """
        if self._ends is None:
            return self._loop.wait()
        if time.monotonic() >= self._ends:
            raise _core.TimedOut
        return self._loop.wait_until(self._ends)
