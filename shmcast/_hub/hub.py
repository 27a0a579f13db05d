"""`Hub`: sends objects to its members and receives their replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from shmcast._codecs.base import Codec, Received
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._endpoints import settings, tracing
from shmcast._endpoints.base import Endpoint
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.frame_writer import DEFAULT_SLOT_BYTES, DEFAULT_SLOTS, DEFAULT_SPILL_BYTES
from shmcast._endpoints.objects import ObjectSender, checked_codec
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup
from shmcast._endpoints.writer import Writer
from shmcast._hub.handle import HubHandle
from shmcast._hub.hub_end import HubEnd, Whom
from shmcast.errors import PeerDied

DEFAULT_REPLY_SLOTS = 16
DEFAULT_REPLY_SLOT_BYTES = 16 * 1024


class AsMade:
    """Stands for what was chosen when the endpoint was made."""

    def __repr__(self) -> str:
        return "AS_MADE"


AS_MADE: Final = AsMade()


class Hub(Writer):
    """Sends objects to a fixed number of members on this host, and receives their replies.

    Making one creates the shared-memory segment, before there is any member: the ring of messages,
    as a `Writer`'s, and a ring for the replies of each member. Each member is a
    `Member(hub.handle, index)` in another process. One thread may send while another receives.

    While `send` waits for room, replies that find none themselves are taken in, to be received
    later: a hub and its members never wait for one another without end.

    Args:
        members: how many members there are (1 to 4096).
        slots: slots of the ring of messages, a power of two.
        slot_bytes: payload bytes of one slot, a multiple of 128.
        arena_bytes: most bytes of shared memory for the arena of the messages; see `Writer`.
        spill_bytes: most bytes of shared memory for messages that find no room while members are
            busy; see `Writer`.
        pin: register that arena with CUDA; see `Writer`.
        reply_slots: slots of each member's ring of replies, a power of two: as many small replies
            of a member can be on their way. A reply that finds no room waits for the hub to
            receive.
        reply_slot_bytes: payload bytes of one of these, a multiple of 128. Larger replies are
            streamed through several slots.
        wait: what to do while there is no reply, or no room; `WaitPolicy.adaptive()` by default.
        codec: turns objects into frames and back; `ObjectCodec()` by default. Members need its
            like. If one thread sends while another receives, both call it.
        on_member_death: "raise": a member that dies ends the waits of all others, in `PeerDied`.
            "drop": the others go on without it, and another process may take its place with
            `Member(handle, index)`.
        on_death: with "drop": called with the `PeerDied` of each member that is dropped, in the
            call that finds it out; see `Writer`. It must not use this hub.
        warn_after: seconds; when a wait lasts longer, the log tells who is slow. None: never.
        label: how errors and `shmcast list` name this endpoint.
        member_label: how errors name the member of an index; "member `index`" by default.

    Attributes:
        handle: where members find the segment.

    Raises:
        InvalidArgument: an argument out of range or of the wrong kind.
        SharedMemoryFull: no room for the segment, about
            `slots * slot_bytes + members * reply_slots * reply_slot_bytes`.
        HostError: the operating system refuses; the message says why, and the way out.
    """

    _end: HubEnd
    handle: HubHandle

    def __init__(
        self,
        members: int,
        *,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        spill_bytes: int = DEFAULT_SPILL_BYTES,
        pin: bool = False,
        reply_slots: int = DEFAULT_REPLY_SLOTS,
        reply_slot_bytes: int = DEFAULT_REPLY_SLOT_BYTES,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_member_death: Literal["raise", "drop"] = "raise",
        on_death: Callable[[PeerDied], object] | None = None,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str = "hub",
        member_label: Callable[[int], str] = "member {}".format,
    ) -> None:
        codecs = both_ways(settings.codec(codec), label)
        sending, receiving = (Warmup.with_sample_of(codec, label) for codec in codecs)
        end = HubEnd(
            members,
            slots=settings.count(settings.SLOTS, slots),
            slot_bytes=settings.count(settings.SLOT_BYTES, slot_bytes),
            arena_bytes=settings.count(settings.ARENA_BYTES, arena_bytes),
            spill_bytes=settings.count(settings.SPILL_BYTES, spill_bytes),
            pin=pin,
            reply_slots=reply_slots,
            reply_slot_bytes=reply_slot_bytes,
            wait=wait,
            on_member_death=on_member_death,
            on_death=on_death,
            warn_after=settings.seconds(settings.WARN_AFTER, warn_after),
            label=label,
            member_label=member_label,
            warmup=None if receiving is None else receiving.receive,
        )
        Endpoint.__init__(self, end)
        ObjectSender.__init__(self, end, codecs[0], sending)
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        tracer = tracing.chosen()
        self._replies = end.replies if tracer is None else end.traced_replies(tracer)
        self._decode = tracing.call(tracer, tracing.DECODE, codecs[1].decode)

    def recv(
        self,
        index: int,
        timeout: float | None = None,
        copy: bool = True,
        *,
        warn_after: float | AsMade | None = AS_MADE,
    ) -> Any:
        """Receive the next reply of a member.

        Whatever ends this call, nothing is lost: the next one receives what this one could not.

        Args:
            index: the member's.
            timeout: seconds to wait for all of it, None for ever, 0 to look only.
            copy: see `Reader.recv`.
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
                return self.recv(index, timeout, copy)
        try:
            frames = self._replies[timeout, copy, index]
        except Exception as error:
            self._end.not_received(error, index, timeout)
        if frames is None:
            raise self._end.death_of(index)
        try:
            return self._decode(frames)
        except BaseException as error:
            self._end.not_decoded({index: frames}, index, error)

    def recv_any(
        self,
        timeout: float | None = None,
        copy: bool = True,
        *,
        warn_after: float | AsMade | None = AS_MADE,
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
                return self.recv_any(timeout, copy)
        try:
            index, frames = self._replies[timeout, copy, None]
        except Exception as error:
            self._end.not_received(error, None, timeout)
        if frames is None:
            return index, self._end.death_of(index)
        try:
            return index, self._decode(frames)
        except BaseException as error:
            self._end.not_decoded({index: frames}, index, error)

    def recv_all(
        self,
        timeout: float | None = None,
        copy: bool = True,
        *,
        warn_after: float | AsMade | None = AS_MADE,
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
                return self.recv_all(timeout, copy)
        try:
            received = self._replies[timeout, copy, ...]
        except Exception as error:
            self._end.not_received(error, ..., timeout)
        return self._decode_all(received)

    async def recv_async(self, index: int, timeout: float | None = None, copy: bool = True) -> Any:
        """Receive the next reply of a member, in a task of an event loop.

        See `Reader.recv_async`. Several tasks may wait, each for whom it likes.

        Args:
            index: the member's.
            timeout: as for `recv`.
            copy: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv` raises.
        """
        frames = await self._received(index, timeout, copy)
        if frames is None:
            raise self._end.death_of(index)
        return self._decode_of(index, frames)

    async def recv_any_async(
        self, timeout: float | None = None, copy: bool = True
    ) -> tuple[int, Any]:
        """Receive a reply of whatever member has one, in a task of an event loop.

        See `recv_any` and `Reader.recv_async`.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv_any` raises.
        """
        index, frames = await self._received(None, timeout, copy)
        if frames is None:
            return index, self._end.death_of(index)
        return index, self._decode_of(index, frames)

    async def recv_all_async(self, timeout: float | None = None, copy: bool = True) -> list[Any]:
        """Receive the next reply of each member, in a task of an event loop.

        See `recv_all` and `Reader.recv_async`.

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.

        Raises:
            RuntimeError: no event loop runs that is known here.
            ShmcastError: what `recv_all` raises.
        """
        return self._decode_all(await self._received(..., timeout, copy))

    async def _received(self, whom: Whom, timeout: float | None, copy: bool) -> Any:
        """Await what a look of `whom` finds."""
        replies: Any = self._replies  # (its stub tells what is found of each kind of `whom`)
        try:
            looking = await self._end.awaiting.begin(timeout)
            while (received := replies[copy, whom]) is ...:
                await looking.again()
        except Exception as error:
            self._end.not_received(error, whom, timeout)
        return received

    # (Those that don't await decode in place: in a decode loop each frame is a cache miss.)
    def _decode_of(self, index: int, frames: list[Received]) -> Any:
        try:
            return self._decode(frames)
        except BaseException as error:
            self._end.not_decoded({index: frames}, index, error)

    def _decode_all(self, received: list[list[Received] | None]) -> list[Any]:
        replies: list[Any] = []
        try:
            for frames in received:
                if frames is None:
                    replies.append(self._end.death_of(len(replies)))
                else:
                    replies.append(self._decode(frames))
        except BaseException as error:
            self._end.not_decoded(dict(enumerate(received)), len(replies), error)
        return replies

    def fileno(self) -> int:
        """Return a descriptor for any event loop: readable when a reply may be there.

        Then, and once before, call `recv_any(timeout=0)`, or another receiving call, until it
        raises `Timeout`; see `Reader.fileno`.

        Raises:
            ShmcastError: what `Reader.fileno` raises.
        """
        return self._end.fileno()

    def interrupt(self) -> None:
        """End the calls that wait here in other threads, or that a signal's handler interrupts.

        They raise `Interrupted`, have taken or sent nothing, and this hub goes on being usable. A
        call that is inside may just be done and return as usual. If none is inside, the next one
        that receives is ended. To be called from any thread, and from a signal's handler.
        """
        self._end.interrupt()

    def reply_statistics(self) -> Statistics:
        """Return what was received of replies so far. From any thread.

        `lag` and `readers` are by member: fragments of replies that were not taken out of its ring
        yet, and its replies. `statistics` tells of the messages.
        """
        return self._end.reply_statistics()


def both_ways(codec: Codec | None, label: str) -> tuple[Codec, Codec]:
    """Return the codecs for what is sent and what is received: the default one is made twice."""
    if codec is None:
        return ObjectCodec(), ObjectCodec()
    return (checked := checked_codec(codec, label)), checked
