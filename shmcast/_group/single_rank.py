"""The endpoint of a group of one rank: nothing is sent, everything is counted."""

from __future__ import annotations

from typing import Any

from shmcast._endpoints.loans import OrdinaryMemory
from shmcast._endpoints.statistics import Statistics
from shmcast.errors import Closed


class SingleRank(OrdinaryMemory):
    """The endpoint of a group of one rank: it only counts."""

    handle = None

    def __init__(self, label: str) -> None:
        self._label = label
        self._messages = 0
        self._closed = False

    def _send(self, _obj: Any, _timeout: float | None) -> None:
        if self._closed:
            raise Closed(f"{self._label}: used after close(); make a new broadcaster")
        self._messages += 1

    def warm(self) -> None:
        pass

    def _begin_tensor_set(self) -> None:
        pass

    def _tensor_sets(self) -> list[int]:
        return []

    def _look_for_deaths(self) -> None:
        pass

    def statistics(self) -> Statistics:
        return Statistics(messages=self._messages)

    def close(self) -> None:
        self._closed = True
