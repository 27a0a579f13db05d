"""The ends of one node's ring in a group of several nodes.

What they add to `FrameWriter` and `FrameReader`: a node's ring may end because of another node, and
then its readers say why; and the process that writes to it is told at once of a reader's death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Frame
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import OrdinaryMemory
from shmcast._host.descriptors import above_stdio
from shmcast._host.epoll_thread import epoll_thread
from shmcast._nodes.failure import Failure, FailurePage
from shmcast.errors import Forked, MessageTooLarge, PeerDied, ShmcastError

# A ring's limits, as in the core's layout.
_MAX_FRAMES = 2**23 - 1
_MAX_BYTES = 2**40 - 1
_ENTRY_BYTES = 8

_THREAD = "shmcast-deaths"


class NodeWriter(FrameWriter):
    """A writer that reports deaths when they happen."""

    _alarm_fd = -1

    def call_on_death(self, on_death: Callable[[], None]) -> None:
        """Call `on_death` in another thread whenever a reader may have ended."""
        self._alarm_fd = fd = above_stdio(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

        def notify(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
            on_death()

        epoll_thread(_THREAD).add(fd, notify)
        self._ring.set_alarm_fd(fd)

    def call_no_more(self) -> None:
        """Undo `call_on_death`; a call may be under way."""
        fd, self._alarm_fd = self._alarm_fd, -1
        if fd >= 0:
            self._ring.set_alarm_fd(-1)
            epoll_thread(_THREAD).remove(fd)
            os.close(fd)


class NoRing(OrdinaryMemory):
    """Stands in for a `NodeWriter` on a node where nobody reads.

    Args:
        label: how errors name the source.
    """

    handle: None = None

    def __init__(self, label: str) -> None:
        self.label: str = label
        """How errors name this end."""
        self._pid = os.getpid()

    def publish(self, frames: Sequence[Frame], timeout: float | None = None) -> None:
        """Check what a ring would check, and do nothing.

        Raises:
            InvalidArgument: `timeout` is neither None nor a number of seconds.
            MessageTooLarge: the rings of other nodes would refuse it, with nobody there to tell.
            Forked: this process was forked from the source's.
        """
        check_timeout(timeout, self.label)
        nbytes = _ENTRY_BYTES * len(frames) + sum(memoryview(frame).nbytes for frame in frames)
        if len(frames) > _MAX_FRAMES or nbytes > _MAX_BYTES:
            raise MessageTooLarge(
                f"{self.label}: a message of {len(frames)} frames and {nbytes} bytes is over the "
                f"limit of {_MAX_FRAMES} frames and {_MAX_BYTES} bytes; send it in parts"
            )
        if os.getpid() != self._pid:
            raise Forked(
                f"{self.label}: send in a process forked from the one that made this endpoint; "
                "start processes with spawn"
            )

    def warm(self, _warmup: Callable[[], None] | None = None) -> None:
        """Do nothing: no cache needs it."""

    def interrupt(self) -> None:
        """Do nothing: nothing waits."""

    def forget_views(self) -> None:
        """Do nothing: nothing is lent."""

    def begin_tensor_set(self) -> None:
        """Do nothing: nobody looks."""

    def tensor_sets(self) -> list[int]:
        """Return no member's."""
        return []

    def check_peers(self) -> None:
        """Do nothing: there are no peers."""

    def tell_death(self, _index: int) -> None:
        """Do nothing: there is nobody to be told."""

    def dropped(self) -> dict[int, PeerDied]:
        """Return nothing: there is nobody to die."""
        return {}

    def departed(self) -> dict[int, str]:
        """Return nobody: nobody was there."""
        return {}

    def call_on_death(self, _on_death: Callable[[], None]) -> None:
        """Do nothing: there is nobody to die."""

    def call_no_more(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def give_up(self) -> None:
        """Do nothing."""


class NodeReader(FrameReader):
    """A reader that knows what lies behind its ring's writer.

    Args:
        handle: see `FrameReader`; so for what is not named here.
        index: see `FrameReader`.
        page: where to read why the ring is closed.
        waits_for: whom `consume` waits for, named in its time-out's message.
    """

    def __init__(
        self, handle: Handle, index: int, page: FailurePage, waits_for: str, **options: Any
    ) -> None:
        super().__init__(handle, index, **options)
        self._page = page
        self._waits_for = waits_for
        self.on_failure: Callable[[Failure], None] | None = None
        """Called with the death of a peer before a call of this end raises it: on the leader."""

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        self._tell(error)
        return super()._meaning(error, action, timeout)

    def _tell(self, error: Exception) -> None:
        if isinstance(error, PeerDied):
            self.end_all(Failure.of(error, self.label))

    def end_all(self, failure: Failure) -> None:
        """End everything, on all nodes, because of this failure, if this is the leader's end."""
        if self.on_failure is not None:
            self.on_failure(failure)

    def check_peers(self) -> None:
        """Look whether a peer has died, or another node has ended this one's ring."""
        try:
            super().check_peers()
        except PeerDied as error:
            self._tell(error)
            raise
        failure = self._page.read()
        if failure is not None:
            raise failure.error(self.label)

    def _end_error(self, what: str) -> ShmcastError:
        failure = self._page.read()
        return failure.error(what) if failure is not None else super()._end_error(what)

    def _blocked_on(self, _action: str) -> str:
        return f": nothing came from {self._waits_for}"


def dropped_of(ring: NodeWriter | NoRing, readers: Sequence[int]) -> list[int]:
    """Return which readers of a ring have died and are dropped, given their ranks by index."""
    departed = ring.departed()
    return [rank for i, rank in enumerate(readers) if departed.get(i) == "dropped"]
