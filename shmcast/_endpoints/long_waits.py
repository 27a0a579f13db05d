"""When to tell of an end's long waits. What is told is found out by `slow_peers`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import SlownessReport, Wait


class LongWaits:
    """Logs who is slow, once a wait has lasted long.

    Args:
        label: how the log names who waits.
        warn_after: seconds of a wait until the first report; None: never.
    """

    def __init__(self, label: str, warn_after: float | None) -> None:
        self._label = label
        self._report: SlownessReport | None = None  # there is one from the first long wait on
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
            self._report = SlownessReport(self._label, self._seconds)
        peers = [SlowPeer(*fields) for fields in slow(wait)]
        return self._report.look(seconds, is_first, wait.action, wait.goal, peers, wait.is_usual)

    def resumed(self, seconds: float) -> None:
        """Log that such a wait went on."""
        if self._report is not None:
            self._report.end(seconds)
