"""The end of a group of one rank: nothing is sent, everything is counted."""

from __future__ import annotations

from typing import Any

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
        self._label = label
        self._messages = 0
        self._closed = False

    def send(self, _obj: Any, _timeout: float | None) -> None:
        """Count a message, whatever it is."""
        if self._closed:
            raise Closed(f"{self._label}: used after close(); make a new broadcaster")
        self._messages += 1

    def warm(self) -> None:
        """Do nothing: there is nothing to warm."""

    def statistics(self) -> Statistics:
        """Return how many messages there were."""
        return Statistics(messages=self._messages)

    def close(self) -> None:
        """End it; idempotent."""
        self._closed = True

    def dropped(self) -> dict[int, PeerDied]:
        """Return nothing: there is nobody to die."""
        return {}

    def give_up(self) -> None:
        """End it: there is nobody to tell."""
        self.close()
