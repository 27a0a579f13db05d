"""`TwoWayEnd`: what a hub's end and a member's share: each is two endpoints of the core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shmcast import _core
from shmcast._endpoints.frame_end import FrameEnd, warning_after
from shmcast._hub.reply_watch import ReplyWatch


class TwoWayEnd(FrameEnd):
    """An end of the ring of messages, with one of the replies beside it: they live and end as one.

    To be named before the class of the ring's end.
    """

    replies: _core.Hub | _core.ReplyWriter
    _reply_watch: ReplyWatch

    def _end_when_collected(self) -> None:
        super()._end_when_collected()
        self._ending.begin_with(self.replies.give_up)

    def _at_exit(self) -> None:
        self.replies.detach()
        super()._at_exit()

    def _waiting(self) -> list[_core.Endpoint]:
        return [self._ring, self.replies]

    def close(self) -> None:
        """End this end; idempotent. Calls that wait in other threads raise `Closed`."""
        self._closed = True
        self.replies.close()
        super().close()

    def interrupt(self) -> None:
        """End the calls that wait in other threads; see `Hub.interrupt` and `Member.interrupt`."""
        self.replies.interrupt()

    @contextlib.contextmanager
    def warning_after(self, seconds: float | None) -> Iterator[None]:
        """Let long waits be told after so many seconds in the block, those of replies, too."""
        with super().warning_after(seconds), self.warning_of_replies_after(seconds):
            yield

    @contextlib.contextmanager
    def warning_of_replies_after(self, seconds: float | None) -> Iterator[None]:
        """Let long waits of replies be told after so many seconds in the block."""
        with warning_after(self.replies, self._reply_watch.long_waits, seconds, self.label):
            yield
