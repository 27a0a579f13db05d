"""The end of a group of one rank: nothing is sent, everything is counted."""

from __future__ import annotations

from typing import Any

from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.loans import OrdinaryMemory
from shmcast._endpoints.statistics import Statistics
from shmcast.errors import Closed, PeerDied


class SingleRank(OrdinaryMemory):
    """Counts what a source sends to nobody.

    Args:
        label: how errors name it.
    """

    handle = None

    def __init__(self, label: str) -> None:
        self.label = label
        self._messages = 0
        self._closed = False

    def send(self, _obj: Any, timeout: float | None) -> None:
        """Count a message, whatever it is."""
        check_timeout(timeout, self.label)
        self._check_open()
        self._messages += 1

    def warm(self) -> None:
        """Do nothing: there is nothing to warm.

        Raises:
            Closed: this end is closed.
        """
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"{self.label}: used after close(); make a new broadcaster")

    def statistics(self) -> Statistics:
        """Return how many messages there were."""
        return Statistics(messages=self._messages)

    def interrupt(self) -> None:
        """Do nothing: nothing waits."""

    def close(self) -> None:
        """End it; idempotent."""
        self._closed = True

    def dropped(self) -> dict[int, PeerDied]:
        """Return nothing: there is nobody to die."""
        return {}

    def departed(self) -> dict[int, str]:
        """Return nobody."""
        return {}

    def check_peers(self) -> None:
        """Do nothing: there is nobody to die."""

    def give_up(self) -> None:
        """End it: there is nobody to tell."""
        self.close()
