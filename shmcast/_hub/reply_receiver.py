"""`ReplyReceiver`: receives the replies of members, in calls that wait or in tasks that await."""

from __future__ import annotations

from typing import Any

from shmcast._codecs.base import Codec, Received
from shmcast._endpoints import tracing
from shmcast._endpoints.copying import Copy, copied_kind
from shmcast._endpoints.long_waits import AS_MADE, AsMade, WarnAfter
from shmcast._hub.answers import Whom
from shmcast._hub.hub_end import HubEnd


class ReplyReceiver:
    """Receives objects from a `HubEnd`.

    Args:
        end: what receives the frames.
        codec: makes objects of them.
    """

    _end: HubEnd

    def __init__(self, end: HubEnd, codec: Codec) -> None:
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        tracer = tracing.chosen()
        self._replies = end.answers if tracer is None else end.traced_replies(tracer)
        self._keep = end.answers.keep
        self._decode = tracing.call(tracer, tracing.DECODE, codec.decode)

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
            frames = self._replies[timeout, copy, index]
        except Exception as error:
            if isinstance(copy, bool):
                self._end.not_received(error, index, timeout)
            frames = self._end.receive_in_part(index, timeout, copy)
        if frames is None:
            raise self._end.death_of(index)
        try:
            return self._decode(frames)
        except BaseException as error:
            self._keep(index, frames)  # first of all: nothing can come between, not even a signal
            self._end.not_decoded(index, error)

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
            index, frames = self._replies[timeout, copy, None]
        except Exception as error:
            if isinstance(copy, bool):
                self._end.not_received(error, None, timeout)
            index, frames = self._end.receive_in_part(None, timeout, copy)
        try:
            return index, self._end.death_of(index) if frames is None else self._decode(frames)
        except BaseException as error:
            self._keep(index, frames)
            self._end.not_decoded(index, error)

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
            received = self._replies[timeout, copy, ...]
        except Exception as error:
            if isinstance(copy, bool):
                self._end.not_received(error, ..., timeout)
            received = self._end.receive_in_part(..., timeout, copy)
        replies: list[Any] = []
        try:
            self._decode_all(received, replies)
            return replies
        except BaseException as error:
            self._keep(..., received)
            self._end.not_decoded(len(replies), error)

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
            index = self._end.check_index(index)
        frames = await self._received(index, timeout, copy, warn_after)
        if frames is None:
            raise self._end.death_of(index)
        try:
            return self._decode(frames)
        except BaseException as error:
            self._keep(index, frames)
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
            return index, self._end.death_of(index) if frames is None else self._decode(frames)
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
            self._decode_all(received, replies)
            return replies
        except BaseException as error:
            self._keep(..., received)
            self._end.not_decoded(len(replies), error)

    async def _received(
        self, whom: Whom, timeout: float | None, copy: Copy, warn_after: WarnAfter
    ) -> Any:
        """Await what a look of `whom` finds."""
        replies: Any = self._replies  # (its stub tells what is found of each kind of `whom`)
        if not isinstance(copy, bool):
            copied_kind(copy, f"{self._end.label}: recv_async")
        try:
            looking = await self._end.awaiting.begin(timeout, warn_after)
            while (received := replies[True, whom]) is ...:
                await looking.again()
        except Exception as error:
            self._end.not_received(error, whom, timeout)
        try:
            if looking.is_long:
                looking.end()
        except BaseException:
            self._keep(whom, received)
            raise
        return received

    def _decode_all(self, received: list[list[Received] | None], replies: list[Any]) -> None:
        """Put the objects of replies, or the deaths in their places, behind those in `replies`."""
        for frames in received:
            if frames is None:
                replies.append(self._end.death_of(len(replies)))
            else:
                replies.append(self._decode(frames))
