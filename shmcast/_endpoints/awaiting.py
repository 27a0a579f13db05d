"""`Awaiting`: how tasks of an event loop wait for what an end receives.

It knows when somebody has to look, and who can wake the loop. It does not know what is received.

A task looks, which arms the end's pipe if there is nothing, and awaits a byte in it. Whoever sends
opens the pipe and writes the byte. Where that is not known to work yet, the loop also looks by
itself now and then; and where it does not, a thread stands in for those who can't.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from shmcast import _core
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.long_waits import AS_MADE, AsMade, LongWaits, WarnAfter
from shmcast._endpoints.loops import Loop, running, running_key
from shmcast._host.process import pid_namespace
from shmcast._host.system_errors import explained
from shmcast.errors import ConcurrentUse

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait

FIRST_INTERVAL = 0.001
LONGEST_INTERVAL = 0.05
"""Seconds between looks while it is not known whether all who send can wake the loop."""
USUAL_INTERVAL = 1.0
"""Seconds between looks at who has come and gone."""


class Waits(Protocol):
    """Knows whom an end waits for, and when that is to be told."""

    long_waits: LongWaits

    def wait_of(self, peers: Sequence[_core.Peer], /) -> Wait:
        """Return what it waits for."""

    def slow(self, wait: Wait, /) -> list[tuple[str, int | None, str]]:
        """Return whom: the fields of a `SlowPeer`."""


class Awaiting:
    """The pipe of an end, and the loop that waits for it.

    Args:
        core: the end.
        senders: returns how many there are who may wake the loop.
        waits: tells of long waits.
        peers: returns the members of the segment.
        label: how errors name the end.
    """

    def __init__(
        self,
        core: _core.Awaitable,
        senders: Callable[[], int],
        waits: Waits,
        peers: Callable[[], Sequence[_core.Peer]],
        label: str,
    ) -> None:
        self._core = core
        self._senders = senders
        self.waits = waits
        """What tells of long waits."""
        self.peers = peers
        """Returns the members of the segment."""
        self._label = label
        self._loop: Loop | None = None
        self._lock = threading.Lock()
        self._interval = FIRST_INTERVAL
        self._stand_in: threading.Thread | None = None
        self._is_polled = False

    async def begin(
        self, action: str, timeout: float | None, warn_after: WarnAfter = AS_MADE
    ) -> Looking:
        """Begin to wait in the running loop; look before each wait, and once before the first.

        Args:
            action: what waits, as errors name it.
            timeout: seconds, None for ever.
            warn_after: seconds until the log tells who is slow.

        Raises:
            InvalidArgument: `timeout` or `warn_after` is no number of seconds.
            RuntimeError: no loop runs.
            _core.EndpointClosed: the end is closed.
            ConcurrentUse: tasks of another loop wait.
        """
        seconds = check_timeout(timeout, self._label, action)
        waits = self.waits.long_waits
        if not isinstance(warn_after, AsMade):
            waits = waits.awaited(warn_after)
        loop = self.enter(action)
        await loop.enter()
        return Looking(loop, action, seconds, self, waits)

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

    def enter(self, action: str) -> Loop:
        """Return the running loop, which is the one that is woken from now on.

        Args:
            action: what is to wait there, as errors name it.

        Raises:
            RuntimeError: no loop runs.
            _core.EndpointClosed: the end is closed.
            ConcurrentUse: tasks of another loop wait.
        """
        key = running_key()
        loop = self._loop
        if loop is not None and loop.key is key:
            return loop
        with self._lock:
            before = self._loop
            if before is not None and before.is_in_use:
                raise ConcurrentUse(
                    f"{self._label}: {action} while tasks of another event loop wait here; let all "
                    "tasks that await this endpoint run in one loop, or close that one first"
                )
            fd = self._listen()
            self._interval = FIRST_INTERVAL
            self._loop = loop = running(self._core, fd, self._next_interval)
        # Last, for tasks that were about to wait there: whoever this wakes finds another loop here.
        if before is not None:
            before.leave(lambda: None)
        return loop

    def is_woken(self, loop: Loop) -> bool:
        """Return whether it is this loop that is woken."""
        return self._loop is loop

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
        action: what waits, as errors name it.
        seconds: so long; None: for ever.
        awaiting: of the end.
        waits: tells of such calls.
    """

    is_long = False
    """Whether this was told of, or soon would have been: then `end` is to be called."""
    _began: float | None = None
    _ends = _due = math.inf
    _report: LongWaits

    def __init__(
        self,
        loop: Loop,
        action: str,
        seconds: float | None,
        awaiting: Awaiting,
        waits: LongWaits,
    ) -> None:
        # (Often that is all: a message is there.)
        self._loop = loop
        self._action = action
        self._seconds = seconds
        self._awaiting = awaiting
        self._waits = waits

    def again(self) -> Awaitable[None]:
        """Wait until it is worth another look.

        To be called right after a look of the same call.

        Raises:
            _core.TimedOut: it is too late for that.
            _core.EndpointClosed: the end is closed.
            ConcurrentUse: another loop came between the look and this, and its tasks wait.
        """
        if not self._awaiting.is_woken(self._loop):
            self._loop = self._awaiting.enter(self._action)
            return self._loop.enter()  # and look at once: what woke the other told it of this look
        now = time.monotonic()
        if self._began is None:
            self._began = now
            self._due = now + self._waits.patience
            if self._seconds is not None:
                self._ends = now + self._seconds
        if now >= self._ends:
            raise _core.TimedOut
        if now >= self._due:
            self._tell(self._began, now - self._began)
        soon = now + USUAL_INTERVAL  # (after which the loop looks anyway)
        if self._due < soon and self._due < self._ends:
            return self._loop.wait_until(self._due)
        return self._loop.wait() if self._ends == math.inf else self._loop.wait_until(self._ends)

    def _tell(self, began: float, seconds: float) -> None:
        """Log whom this waits for, if it is time; else note what they do until then."""
        waits = self._awaiting.waits
        is_first, self.is_long = not self.is_long, True
        if is_first:
            self._report = self._waits.awaited()
        wait = waits.wait_of(self._awaiting.peers())
        self._due = began + self._report.report(seconds, is_first, wait, waits.slow)

    def end(self) -> None:
        """Log that this goes on, if it was told that it waits."""
        if self._began is not None:
            self._report.resumed(time.monotonic() - self._began)
