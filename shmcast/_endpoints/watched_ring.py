"""`Ring`: what a watch over the members of a segment needs of its end there."""

from __future__ import annotations

from typing import Protocol


class Ring(Protocol):
    """What a watch needs of its end of the ring."""

    def watch_process(self, pidfd: int) -> int:
        """Raise the alarm when a process ends."""

    def watch_lock(self, fd: int, place: int) -> int:
        """Raise the alarm when a lock is dropped."""

    def unwatch(self, watch: int) -> None:
        """Raise it no more."""

    def tell_death(self, place: int) -> int:
        """Tell all of a death, before this end may follow; return whose was the first one told."""

    def told_death(self) -> int:
        """Return whose death was told first; a place of nobody: no one's."""
