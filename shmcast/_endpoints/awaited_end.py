"""`AwaitedEnd`: an end of frames for which the tasks of an event loop can wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmcast import _core
from shmcast._endpoints.frame_end import FrameEnd

if TYPE_CHECKING:
    from shmcast._endpoints.awaiting import Awaiting, Waits


class AwaitedEnd(FrameEnd):
    """An end that receives, and what it takes to await that."""

    _awaiting: Awaiting | None = None

    @property
    def awaiting(self) -> Awaiting:
        """How tasks wait here."""
        if self._awaiting is None:
            from shmcast._endpoints.awaiting import Awaiting  # (imports asyncio)

            self._awaiting = Awaiting(
                *self._awaited(), self._watch_of_receiving(), self._ring.peers, self.label
            )
            self._ending.add(self._awaiting.close)
        return self._awaiting

    def fileno(self) -> int:
        """Return a descriptor for any event loop; see `Reader.fileno`."""
        try:
            return self.awaiting.fileno()
        except Exception as error:
            self._raise(error, "fileno", None)

    def _note_time_out(self, error: BaseException) -> None:
        """If a call has found nothing, let `fileno` become readable when one may find something."""
        if self._awaiting is not None and isinstance(error, _core.TimedOut):
            with contextlib.suppress(_core.EndpointClosed):  # the next call tells
                self._awaiting.found_nothing()

    def _watch_of_receiving(self) -> Waits:
        """Return what tells of long waits of calls that receive."""
        return self._watch

    def _awaited(self) -> tuple[_core.Awaitable, Callable[[], int]]:
        """Return the core's end that receives, and what counts those who send to it.

        Neither must lead back to this end, which is ended when it is collected.
        """
        raise NotImplementedError
