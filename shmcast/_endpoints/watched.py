"""`Watched`: a peer as it was first observed, and how its end is seen."""

from __future__ import annotations

from dataclasses import dataclass, field

from shmcast import _core
from shmcast._host.places import Places
from shmcast._host.process import Pidfd, is_alive, is_exiting

EXECUTED = "replaced by another program (exec)"
"""How a member has ended whose process runs something else now."""


@dataclass
class Watched:
    """A peer as it was first observed, and by what it is watched."""

    pid: int
    start_time: int
    holds_lock: bool = False
    is_here: bool = True
    """In this pid namespace."""
    pidfd: Pidfd | None = None
    alarms: list[int] = field(default_factory=list)
    """The watcher's numbers for it."""
    must_look: bool = False
    """No alarm tells of its end, or not yet."""
    gone: str | None = None
    """It has ended: how, where known."""

    def is_still(self, peer: _core.Peer) -> bool:
        """Return whether a peer is the one that is watched, by all that there can be."""
        if (self.pid, self.start_time) != (peer.pid, peer.start_time):
            return False
        if self.gone is not None:
            return True
        if self.pidfd is not None and self.pidfd.is_dead():
            return True  # which tells how it has ended: a new one could not, if it is reaped
        # (Somebody may have closed descriptors that were not his.)
        return not self.must_look and (self.pidfd is None or self.pidfd.is_usable())

    def end(self, index: int, places: Places) -> str | None:
        """Return how it has ended, "" where that is not known; None: it lives."""
        if self.pidfd is not None and self.pidfd.is_dead():
            return self.pidfd.how()
        if not self.holds_lock:
            if self.must_look and self.pidfd is None and self._is_dead_by_pid():
                return ""
            return None
        if places.is_held(index) is not False:
            return None
        # Dropped at its end, of which the pidfd tells more in a moment; or at exec; or, when it
        # left, by itself: then its seat says so.
        if self.pidfd is None:
            return ""
        return None if is_exiting(self.pid) else EXECUTED

    def known_end(self) -> str:
        """Return how it has ended, as far as nothing needs to be looked for; "": it may live."""
        if self.gone is None and self.pidfd is not None and self.pidfd.is_dead():
            return self.pidfd.how()
        return self.gone or ""

    def _is_dead_by_pid(self) -> bool:
        return self.is_here and not is_alive(self.pid, self.start_time)

    def end_of_replaced(self) -> str:
        """Return how it has ended, whose seat somebody else has now."""
        if self.gone is not None:
            return self.gone
        if self.pidfd is None or not self.pidfd.is_usable():
            return ""
        if self.pidfd.is_dead():
            return self.pidfd.how()
        return "" if is_exiting(self.pid) else EXECUTED
