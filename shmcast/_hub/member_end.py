"""`MemberEnd`: the end that consumes a hub's messages of frames and publishes replies to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from shmcast import _core
from shmcast._codecs.base import Frame
from shmcast._endpoints.frame_end import CORE_ERRORS
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import Outbox
from shmcast._endpoints.waiting import core_policy
from shmcast._host.places import Places
from shmcast._host.signals import add_note, is_interruption
from shmcast._host.words import counted
from shmcast._hub.handle import HubHandle, replies_of
from shmcast._hub.two_way_end import TwoWayEnd
from shmcast.errors import Closed, NoMessage, ShmcastError

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait
    from shmcast._endpoints.statistics import Statistics


class MemberEnd(TwoWayEnd, FrameReader):
    """Takes a member's place at a hub; a sink of frames, too, which are replies.

    It takes the arguments of `Member`, which stands on it, but for the codec, and raises the same.
    """

    reader_noun = "member"
    writer_noun = "hub"
    _handle_type = HubHandle
    handle: HubHandle
    replies: _core.ReplyWriter

    def _begin(self, memory: _core.Mapping, places: Places) -> None:
        self._reply_watch = self._watch_replies()
        self.replies = _core.ReplyWriter(
            memory,
            self._ring,
            replies_of(self.handle),
            self.handle.nonce,
            core_policy(self.wait_policy),
            self._cpu_quota,
            self._reply_watch,
        )
        self.outbox: Outbox = self.replies
        """Where replies are put; see `FrameWriter.outbox`."""
        self._watch.begin(self.replies, places)

    def _wait_of_replies(self, peers: Sequence[_core.Peer]) -> Wait:
        from shmcast._endpoints.slow_peers import Wait  # rarely needed

        lag = self.replies.lags()[0]
        return Wait("reply", "room", [(peers[-1], f"{counted(lag, 'fragment')} behind")])

    def publish(self, frames: Sequence[Frame], timeout: float | None = None) -> None:
        """Publish a reply that answers no message; not for an end whose `outbox` is used.

        Raises:
            ShmcastError: what `Member.reply` raises, but for NoMessage.
        """
        try:
            _core.RingWriter.publish(self.replies, frames, timeout)
        except BaseException as error:
            self.not_published(error, timeout)

    def not_published(self, error: BaseException, timeout: float | None, /) -> NoReturn:
        """Raise what an error of `outbox` means here; others pass unchanged."""
        try:
            if isinstance(error, _core.NothingToAnswer):
                raise NoMessage(
                    f"{self.label}: reply without a message: each message that was received can be "
                    "answered once; recv() first"
                ) from None
            if isinstance(error, CORE_ERRORS):
                self._raise(error, "reply", timeout)
            if is_interruption(error):
                how = "had sent it" if self.replies.is_sent() else "has sent nothing"
                add_note(error, f"{self.label}: the reply that this interrupted {how}")
            raise error
        finally:
            del error  # in a cycle, it would hold what was to be sent until it is collected

    def not_encoded(self) -> None:
        """Note that what was to be replied has not become frames: `was_sent` is False."""
        self.replies.forget_sent()

    def forget_views(self) -> None:
        """Do nothing: replies have no loans."""

    def warm(self, warmup: Callable[[], None] | None, /) -> None:
        """Bring what the next reply touches into this core's cache, `warmup` included."""
        try:
            self.replies.warm(warmup)
        except Exception as error:
            self._raise(error, "warm", None)

    @property
    def was_sent(self) -> bool:
        """Whether the last reply was sent; see `Member.was_replied`."""
        return self.replies.is_sent()

    def _end_error(self, what: str) -> ShmcastError:
        error = super()._end_error(what)
        if what.endswith(": reply") and isinstance(error, Closed):
            return Closed(f"{what}: the hub has closed, nobody is left to receive it")
        return error

    def _blocked_on(self, action: str) -> str:
        lag = self.replies.lags()[0]
        if not lag:
            return ""
        what = ": no message has come, and" if action == "recv" else ":"
        return (
            f"{what} the hub has yet to receive {counted(lag, 'fragment')} of earlier replies "
            f"(reply_slots={self.handle.reply_slots})"
        )

    def reply_statistics(self) -> Statistics:
        """Return what was replied so far. From any thread."""
        from shmcast._endpoints.statistics import Statistics  # (not to be imported at once)

        return Statistics(**self.replies.figures(), lag=tuple(self.replies.lags()))
