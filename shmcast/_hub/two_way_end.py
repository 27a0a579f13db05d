"""`TwoWayEnd`: what a hub's end and a member's share: each is two endpoints of the core."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from shmcast import _core
from shmcast._endpoints.frame_end import FrameEnd
from shmcast._endpoints.long_waits import warning_after
from shmcast._hub.reply_watch import ReplyWatch
from shmcast.errors import Closed, PeerDied, ShmcastError, Timeout

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait


class TwoWayEnd(FrameEnd):
    """An end of the ring of messages, with one of the replies beside it: they live and end as one.

    To be named before the class of the ring's end.
    """

    replies: _core.Hub | _core.ReplyWriter
    _reply_watch: ReplyWatch
    _is_at_barrier = False

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

    def barrier(self, timeout: float | None = None) -> None:
        """Wait until all others have come to the barrier, too; not for who took a dead one's place.

        Whatever ends this call, the next one is in the same barrier.

        Args:
            timeout: seconds, None for ever.

        Raises:
            Timeout: somebody has not come in time.
            Closed: this end is closed, or another has closed and not come.
            PeerDied: a member has died that the hub does not drop, or the hub has.
            Interrupted: `interrupt` was called.
            ConcurrentUse: another thread receives here, or replies.
            Forked: this process was forked from the one that made this end.
        """
        self._is_at_barrier = True
        try:
            self.replies.barrier(timeout)
        except Exception as error:
            self._raise(error, "barrier", timeout)
        finally:
            self._is_at_barrier = False

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        if action == "barrier" and isinstance(error, _core.TimedOut | _core.EndpointClosed):
            absent = self.replies.absent()
            if isinstance(error, _core.TimedOut):
                return Timeout(
                    f"{self.label}: barrier timed out after {timeout} s: {self._named(absent)} "
                    f"{has_or_have(absent)} not come; call it again to go on waiting"
                )
            states = [peer.state for peer in self._ring.peers()]
            left = [index for index in absent if states[index] == "left"]
            if left and not self._closed and not self._is_told_of_the_exit():
                try:
                    self.check_peers()  # they may have closed because another has died
                except PeerDied as death:
                    return death
                who = f"{self._named(left)} {has_or_have(left)}"
                return Closed(f"{self.label}: barrier: {who} closed, and will not come")
        return super()._meaning(error, action, timeout)

    def vacant(self) -> list[int]:
        """Return which members have not attached yet, by index."""
        return [peer.index for peer in self._ring.peers() if peer.state == "vacant"]

    def _named(self, members: Sequence[int]) -> str:
        """Name members by index, the hub by their number."""
        return " and ".join(map(self._names, members)) or "any member"

    def _wait_of_replies(self, peers: Sequence[_core.Peer]) -> Wait:
        """Say what this end waits for among the replies, outside of a barrier."""
        raise NotImplementedError

    def _watch_replies(self) -> ReplyWatch:
        """Make the watch of the replies' waits. It does not keep this end."""
        from shmcast._endpoints.slow_peers import Wait

        me = weakref.ref(self)

        def wait_of(peers: Sequence[_core.Peer]) -> Wait:
            end = me()
            if end is None:  # it is being collected, and waits for nobody
                return Wait("close", "nobody", [])
            return end._wait_at_barrier(peers) or end._wait_of_replies(peers)  # noqa: SLF001

        return ReplyWatch(self._watch, self.label, self.warn_after, wait_of)

    def _wait_at_barrier(self, peers: Sequence[_core.Peer]) -> Wait | None:
        """Say what this end waits for in a barrier; None: it is in none."""
        from shmcast._endpoints.slow_peers import Wait  # rarely needed

        if not self._is_at_barrier:
            return None
        absent = self.replies.absent()
        return Wait("barrier", "others", [(peer, "") for peer in peers if peer.index in absent])

    def interrupt(self) -> None:
        """End the calls that wait in other threads; see `Hub.interrupt` and `Member.interrupt`."""
        self.replies.interrupt()

    def warning_after(self, seconds: float | None) -> AbstractContextManager[None]:
        """Let long waits be told after so many seconds in the block, those of replies, too."""
        both = self.warning_of_messages_after(seconds), self.warning_of_replies_after(seconds)
        return _together(*both)

    def warning_of_replies_after(self, seconds: float | None) -> AbstractContextManager[None]:
        """Let long waits of replies be told after so many seconds in the block."""
        return warning_after(self.replies, self._reply_watch.long_waits, seconds, self.label)


@contextlib.contextmanager
def _together(
    first: AbstractContextManager[None], second: AbstractContextManager[None]
) -> Iterator[None]:
    with first, second:
        yield


def has_or_have(members: Sequence[int]) -> str:
    """Return the word that follows the names of so many."""
    return "has" if len(members) == 1 else "have"
