"""The ends of one node's ring in a group of several nodes.

What they add to `FrameWriter` and `FrameReader`: a node's ring may end because of another node, and
then its readers say why; and the process that writes to it is told at once of a reader's death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._host.epoll_thread import epoll_thread
from shmcast._nodes.failure import LastWords
from shmcast.errors import ShmcastError

_THREAD = "shmcast-deaths"


class NodeWriter(FrameWriter):
    """A writer that tells of deaths when they happen."""

    _alarm_fd = -1

    def call_on_death(self, on_death: Callable[[], None]) -> None:
        """Call `on_death` in another thread whenever a reader may have ended."""
        self._alarm_fd = fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

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


class NodeReader(FrameReader):
    """A reader that knows what lies behind its ring's writer.

    Args:
        handle: see `FrameReader`; so for what is not named here.
        index: see `FrameReader`.
        words: why the ring is closed, if it is.
        waits_for: on whom `consume` waits, for its time-out's message.
    """

    def __init__(
        self, handle: Handle, index: int, words: LastWords, waits_for: str, **options: Any
    ) -> None:
        super().__init__(handle, index, **options)
        self._words = words
        self._waits_for = waits_for

    def check_peers(self) -> None:
        """Look whether a peer has died, or another node has ended this one's ring."""
        super().check_peers()
        verdict = self._words.read()
        if verdict is not None:
            raise verdict.error(self.label)

    def _end_error(self, what: str) -> ShmcastError:
        verdict = self._words.read()
        return verdict.error(what) if verdict is not None else super()._end_error(what)

    def _blocked_on(self) -> str:
        return f": nothing came from {self._waits_for}"
