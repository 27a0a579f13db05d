"""`ReplyReceiver`: receives the replies of members, in calls that wait or in tasks that await."""

from __future__ import annotations

from typing import Any

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import core_coder
from shmcast._endpoints import tracing
from shmcast._endpoints.copying import Copy, copied_kind
from shmcast._endpoints.long_waits import AS_MADE, AsMade, WarnAfter
from shmcast._endpoints.objects import was_caught_in
from shmcast._hub.answers import Reply, Whom
from shmcast._hub.hub_end import HubEnd


class ReplyReceiver:
    """Receives objects from a `HubEnd`.

    Args:
        end: what receives the frames.
        codec: makes objects of them.
    """

    _end: HubEnd

    def __init__(self, end: HubEnd, codec: Codec) -> None:
        # Bound once, for who needs the frames.
        tracer = tracing.chosen()
        self._replies = end.answers if tracer is None else end.traced_replies(tracer)
        self._keep = end.answers.keep
        self._decode = tracing.call(tracer, tracing.DECODE, codec.decode)
        # In the core: in a decode loop every step on the way is a cache miss.
        self._inbox = _core.ReplyInbox(
            self._replies,
            self._keep,
            end.death_of,
            end.not_decoded,
            self._decode,
            core_coder(codec) if tracer is None else None,
        )

    def recv(
        self,
        index: int,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> Any:
        """Receive the next reply of a member.

        Whatever ends this call, nothing is lost: the next one receives what this one could not.

        Args:
            index: the member's.
            timeout: seconds to wait for all of it, None for ever, 0 to look only.
            copy: see `Reader.recv`; replies have no arena, so all of it is copied.
            warn_after: for this call, in place of what the hub was made with.

        Raises:
            Timeout: no whole reply came in time.
            Interrupted: `interrupt` was called.
            PeerDied: a member has died, not necessarily this one. With `on_member_death="drop"`:
                this member has died and all its replies were received; so each time until its place
                is taken, and once at least before the first reply of who has taken it.
            Closed: this hub is closed, or the member is and all its replies were received.
            DecodeError: the codec can't decode this reply; the next call gets the next one.
            InvalidArgument: there is no such member.
            ConcurrentUse: another thread is receiving.
            Forked: this process was forked from the hub's.
        """
        if not isinstance(warn_after, AsMade):
            with self._end.warning_of_replies_after(warn_after):
                return ReplyReceiver.recv(self, index, timeout, copy)
        if type(index) is not int:
            index = self._end.check_index(index)
        try:
            return self._inbox[timeout, copy, index]  # (no call, see `FrameReader.messages`)
        except BaseException as error:
            self._not_received(error, index, timeout, copy)
        return ReplyReceiver.recv(self, index, timeout)

    def recv_any(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> tuple[int, Any]:
        """Receive a reply of whatever member has one. Nobody is passed over twice in a row.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Returns:
            The member's index, and its reply. With `on_member_death="drop"` the last one of a
            member that dies is its `PeerDied`.

        Raises:
            Closed: this hub is closed, or every member is and all was received.
            PeerDied: a member has died; with `on_member_death="drop"`, the last one.
            ShmcastError: what else `recv` raises.
        """
        if not isinstance(warn_after, AsMade):
            with self._end.warning_of_replies_after(warn_after):
                return ReplyReceiver.recv_any(self, timeout, copy)
        try:
            received: tuple[int, Any] = self._inbox[timeout, copy, None]
            return received
        except BaseException as error:
            self._not_received(error, None, timeout, copy)
        return ReplyReceiver.recv_any(self, timeout)

    def recv_all(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> list[Any]:
        """Receive the next reply of each member.

        Each is taken out of its ring as it comes; and if this raises, the next call has them.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Returns:
            The replies by index. With `on_member_death="drop"` that of a member that is dropped is
            its `PeerDied`.

        Raises:
            Timeout: some reply has not come in time; the error names who has not replied.
            Closed: this hub is closed, or a member is and all its replies were received.
            PeerDied: a member has died, without `on_member_death="drop"`.
            DecodeError: the codec can't decode one of them; the error names the member. The next
                call has the others, and the next one of this member.
            ShmcastError: what else `recv` raises.
        """
        if not isinstance(warn_after, AsMade):
            with self._end.warning_of_replies_after(warn_after):
                return ReplyReceiver.recv_all(self, timeout, copy)
        try:
            received: list[Any] = self._inbox[timeout, copy, ...]
            return received
        except BaseException as error:
            self._not_received(error, ..., timeout, copy)
        return ReplyReceiver.recv_all(self, timeout)

    def _not_received(
        self, error: BaseException, whom: Whom, timeout: float | None, copy: object
    ) -> None:
        """Raise what an error of a call means; return if `copy` is a kind: replies are copies."""
        try:
            if was_caught_in(_core.DECODING, error):  # its meaning is told
                raise error
            if not isinstance(copy, bool) and isinstance(error, TypeError):
                self._end.check_copy(copy, whom)
                return
            if isinstance(error, Exception):
                self._end.not_received(error, whom, timeout)
            raise error
        finally:
            del error  # in a cycle, it would hold what its traceback knows until it is collected

    async def recv_async(
        self,
        index: int,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> Any:
        """Receive the next reply of a member, in a task of an event loop.

        See `Reader.recv_async`. Several tasks may wait, each for whom it likes.

        Args:
            index: the member's.
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv` raises.
        """
        if type(index) is not int:
            index = self._end.check_index(index, "recv_async")
        frames = await self._received(index, timeout, copy, warn_after)
        if frames is None:
            raise self._end.death_of(index)
        try:
            return self._object_of(index, frames)
        except BaseException as error:
            self._keep(index, frames)  # first of all: nothing can come between, not even a signal
            self._end.not_decoded(index, error)

    async def recv_any_async(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> tuple[int, Any]:
        """Receive a reply of whatever member has one, in a task of an event loop.

        See `recv_any` and `Reader.recv_async`.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv_any` raises.
        """
        index, frames = await self._received(None, timeout, copy, warn_after)
        try:
            return index, self._object_of(index, frames)
        except BaseException as error:
            self._keep(index, frames)
            self._end.not_decoded(index, error)

    async def recv_all_async(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> list[Any]:
        """Receive the next reply of each member, in a task of an event loop.

        See `recv_all` and `Reader.recv_async`.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv_all` raises.
        """
        received = await self._received(..., timeout, copy, warn_after)
        replies: list[Any] = []
        try:
            for index, frames in enumerate(received):
                replies.append(self._object_of(index, frames))
            return replies
        except BaseException as error:
            self._keep(..., received)
            self._end.not_decoded(len(replies), error)

    async def _received(
        self, whom: Whom, timeout: float | None, copy: Copy, warn_after: WarnAfter
    ) -> Any:
        """Await what a look of `whom` finds."""
        replies: Any = self._replies  # (its stub tells what is found of each kind of `whom`)
        action = "recv_async"
        if type(whom) is not int:
            action = "recv_any_async" if whom is None else "recv_all_async"
        if not isinstance(copy, bool):
            copied_kind(copy, f"{self._end.label}: {action}")
        try:
            looking = await self._end.awaiting.begin(action, timeout, warn_after)
            while (received := replies[True, whom]) is ...:
                await looking.again()
        except Exception as error:
            if type(whom) is int:
                self._end.check_index(whom, action)
            self._end.not_received(error, whom, timeout)
        try:
            if looking.is_long:
                looking.end()
        except BaseException:
            self._keep(whom, received)
            raise
        return received

    def _object_of(self, index: int, frames: Reply | _core.Decoded) -> Any:
        """Return what stands for a member's reply: its object, or the error of a death."""
        if frames is None:
            return self._end.death_of(index)
        return frames.object if isinstance(frames, _core.Decoded) else self._decode(frames)
