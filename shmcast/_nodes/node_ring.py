"""The ends of one node's ring in a group of several nodes.

What they add to `FrameWriter` and `FrameReader`: a node's ring may end because of another node, and
then its readers say why; and the process that writes to it is told at once of a reader's death.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._nodes.failure import FailurePage
from shmcast.errors import ShmcastError


class NodeWriter(FrameWriter):
    """A writer that tells of deaths when they happen."""

    on_death: Callable[[], None] | None = None
    """Called in another thread when a reader's process has ended."""

    def _on_peer_exit(self) -> None:
        super()._on_peer_exit()
        on_death = self.on_death
        if on_death is not None:
            on_death()


class NodeReader(FrameReader):
    """A reader that knows what lies behind its ring's writer.

    Args:
        handle: see `FrameReader`; so for what is not named here.
        index: see `FrameReader`.
        page: why the ring is closed, if it is.
        waits_for: on whom `consume` waits, for its time-out's message.
    """

    def __init__(
        self, handle: Handle, index: int, page: FailurePage, waits_for: str, **options: Any
    ) -> None:
        super().__init__(handle, index, **options)
        self._page = page
        self._waits_for = waits_for

    def check_peers(self) -> None:
        """Look whether a peer has died, or another node has ended this one's ring."""
        super().check_peers()
        failure = self._page.read()
        if failure is not None:
            raise failure.error(self.label)

    def _end_error(self, what: str) -> ShmcastError:
        failure = self._page.read()
        return failure.error(what) if failure is not None else super()._end_error(what)

    def _blocked_on(self) -> str:
        return f": nothing came from {self._waits_for}"
