"""The watch of an end of replies: that of its messages, which tells of its own long waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shmcast import _core
from shmcast._endpoints.long_waits import LongWaits
from shmcast._endpoints.peers import Watch

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait


class ReplyWatch:
    """Looks after the peers as the watch of the messages does; what it finds is for both ends.

    Args:
        watch: of the messages of the same segment.
        label: how the log names this end.
        warn_after: seconds of a wait after which it is told who is slow; None: never.
        wait: says what this end waits for, given all members.
    """

    def __init__(
        self,
        watch: Watch,
        label: str,
        warn_after: float | None,
        wait: Callable[[Sequence[_core.Peer]], Wait],
    ) -> None:
        self._watch = watch
        self.wait_of = wait
        self.long_waits = LongWaits(label, warn_after)
        """What tells of this end's long waits."""
        self.observe = watch.observe
        self.find_dead = watch.find_dead
        self.attribute_deaths = watch.attribute_deaths
        self.tell_deaths = watch.tell_deaths
        self.exited = watch.exited
        self.slow = watch.slow

    @property
    def patience(self) -> float:
        """Seconds of a wait until the first `report_slow`."""
        return self.long_waits.patience

    @property
    def must_look(self) -> bool:
        """Whether somebody's end raises no alarm; see `Watch.must_look`."""
        return self._watch.must_look

    def report_slow(self, seconds: float, is_first: bool, peers: Sequence[_core.Peer]) -> float:
        """Log who is slow; see `Watch.report_slow`."""
        return self.long_waits.report(seconds, is_first, self.wait_of(peers), self.slow)

    def resumed(self, seconds: float) -> None:
        """Log that such a wait went on."""
        self.long_waits.resumed(seconds)
