"""Looks at all segments again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from shmcast._operators.discovery import OpenSegment, open_segments
from shmcast._operators.rates import Rates, ordered, rates
from shmcast._operators.snapshot import GONE, Snapshot, take


class Observer:
    """Looks at all segments again and again. It looks for new ones less often than at them."""

    _DISCOVER_SECONDS = 3.0

    def __init__(self) -> None:
        self._files: list[OpenSegment] = []
        self._discover_at = 0.0
        self._before: dict[str, Snapshot] = {}

    def look(self) -> list[Rates]:
        """Return how all segments did since the last look; those that are new come with the next.

        Raises:
            HostError: there is no /proc.
        """
        if time.monotonic() >= self._discover_at:
            self._files = open_segments()
            self._discover_at = time.monotonic() + self._DISCOVER_SECONDS
        now = {file.name: take(file) for file in self._files}
        if any(snapshot.error for snapshot in now.values()):
            self._discover_at = 0.0  # somebody has gone
        before, self._before = self._before, now
        return [
            rates(before[name], seen)
            for name, seen in now.items()
            if name in before and not seen.is_over and seen.error != GONE
        ]


def observed(key: str, seconds: float) -> Iterator[list[Rates]]:
    """Yield how all segments did, again and again.

    Args:
        key: of SORT_KEYS, in which order; those that are stuck come first.
        seconds: between two looks.

    Raises:
        HostError: there is no /proc.
    """
    observer = Observer()
    observer.look()
    while True:
        time.sleep(seconds)
        yield ordered(observer.look(), key)
