"""When to tell of an end's long waits. What is told is found out by `slow_peers`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from shmcast import _core
from shmcast._endpoints.arguments import check_seconds

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import SlownessReport, Wait


class AsMade:
    """Stands for the `warn_after` with which the endpoint was made."""

    def __repr__(self) -> str:
        return "AS_MADE"


AS_MADE: Final = AsMade()
WarnAfter = float | AsMade | None
"""Seconds of a wait until the log tells who is slow, for one call; None: never."""


class LongWaits:
    """Logs who is slow, once a wait has lasted long.

    Args:
        label: how the log names who waits.
        warn_after: seconds of a wait until the first report; None: never.
        has_time: a report may take a moment, to look for stacks.
    """

    def __init__(self, label: str, warn_after: float | None, has_time: bool = True) -> None:
        self._label = label
        self._has_time = has_time
        self._report: SlownessReport | None = None  # there is one from the first long wait on
        self.advice: str = ""
        """What else to say of a wait for room."""
        self.warn_after = warn_after

    @property
    def warn_after(self) -> float | None:
        """Seconds of a wait until the first report; None: never."""
        return None if self._seconds == math.inf else self._seconds

    @warn_after.setter
    def warn_after(self, seconds: float | None) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._report = None

    @property
    def patience(self) -> float:
        """Seconds of a wait until the first `report`.

        That notes CPU times: to tell later who has been computing.
        """
        return self._seconds / 2

    def report(
        self,
        seconds: float,
        is_first: bool,
        wait: Wait,
        slow: Callable[[Wait], list[tuple[str, int | None, str]]],
    ) -> float:
        """Log who is slow, if it is time.

        Args:
            seconds: how long the wait has lasted.
            is_first: this is the first call for it.
            wait: what it is.
            slow: returns the fields of a `SlowPeer` for each whom it waits for.

        Returns:
            When to call again, in seconds of the wait.
        """
        from shmcast._endpoints.slow_peers import SlownessReport, SlowPeer  # rarely needed

        if self._report is None:
            stacks = {} if self._has_time else {"stack_seconds": 0.0}
            self._report = SlownessReport(self._label, self._seconds, **stacks)
        peers = [SlowPeer(*fields) for fields in slow(wait)]
        goal = wait.goal
        if goal == "room" and self.advice:
            goal += f" ({self.advice})"
        return self._report.look(seconds, is_first, wait.action, goal, peers, wait.is_usual)

    def awaited(self, warn_after: WarnAfter = AS_MADE) -> LongWaits:
        """Return what tells of one wait in an event loop, which others go on beside.

        Raises:
            InvalidArgument: `warn_after` is no number of seconds.
        """
        seconds = self.warn_after
        if not isinstance(warn_after, AsMade):
            seconds = check_seconds("warn_after", warn_after, self._label)
        waits = LongWaits(self._label, seconds, has_time=False)
        waits.advice = self.advice
        return waits

    def resumed(self, seconds: float) -> None:
        """Log that such a wait went on."""
        if self._report is not None:
            self._report.end(seconds)


def warning_after(
    endpoint: _core.Endpoint, waits: LongWaits, seconds: float | None, label: str
) -> AbstractContextManager[None]:
    """Let the long waits of an endpoint be told after so many seconds, in the block.

    Raises:
        InvalidArgument: `seconds` is no number of seconds; now, not only in the block.
    """
    return _warning_after(endpoint, waits, check_seconds("warn_after", seconds, label))


@contextlib.contextmanager
def _warning_after(
    endpoint: _core.Endpoint, waits: LongWaits, after: float | None
) -> Iterator[None]:
    before = waits.warn_after
    try:
        waits.warn_after = after
        endpoint.set_patience(waits.patience)
        yield
    finally:
        waits.warn_after = before
        endpoint.set_patience(waits.patience)
