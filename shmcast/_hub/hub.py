"""`Hub`: sends objects to its members and receives their replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._endpoints import settings
from shmcast._endpoints.base import Endpoint
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.frame_writer import DEFAULT_SLOT_BYTES, DEFAULT_SLOTS, DEFAULT_SPILL_BYTES
from shmcast._endpoints.objects import ObjectSender, checked_codec
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup
from shmcast._endpoints.writer import Writer
from shmcast._hub.handle import HubHandle
from shmcast._hub.hub_end import HubEnd
from shmcast._hub.reply_receiver import ReplyReceiver
from shmcast._hub.reply_warmup import ReplyWarmup
from shmcast.errors import PeerDied

DEFAULT_REPLY_SLOTS = 16
DEFAULT_REPLY_SLOT_BYTES = 16 * 1024


class Hub(ReplyReceiver, Writer):
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
        self._begin(
            HubEnd,
            members,
            codec,
            slots=slots,
            slot_bytes=slot_bytes,
            arena_bytes=arena_bytes,
            spill_bytes=spill_bytes,
            pin=pin,
            reply_slots=reply_slots,
            reply_slot_bytes=reply_slot_bytes,
            wait=wait,
            on_member_death=on_member_death,
            on_death=on_death,
            warn_after=warn_after,
            label=label,
            member_label=member_label,
        )

    @classmethod
    def over(
        cls,
        rank: int,
        size: int,
        exchange: Callable[[bytes], Sequence[bytes]],
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
    ) -> Hub:
        """Make a hub whose members may be on other hosts: a collective with their `Member.over`.

        One rank calls this, all others `Member.over`: they are the members, numbered from 0 in the
        order of their ranks. Each other host gets a message once, and packs its replies together.

        Args:
            rank: this process's.
            size: the number of ranks, one more than there are members.
            exchange: an all-gather of the caller's own, see `ShmBroadcaster.over`. It is called 6
                times here, and not kept.
            slots: see `Hub`; so for the others. Rings on other hosts have the same shape.
            slot_bytes: of a slot.
            arena_bytes: of the arena of this host.
            spill_bytes: of the spill of each host.
            pin: whether to register that arena with CUDA.
            reply_slots: of the rings of replies.
            reply_slot_bytes: of a slot of these.
            wait: the policy of this hub.
            codec: of the same kind on every rank.
            on_member_death: "raise" or "drop". A host that is lost is all of its members. On other
                hosts than this one, no place is taken again.
            on_death: of members of other hosts, called by the call that would receive from them.
            warn_after: seconds.
            label: how errors name this hub.

        Raises:
            InvalidArgument: there is no such rank, or `exchange` returns anything else; several
                ranks are the hub, or no rank is a member.
            SegmentError: `exchange` has raised an error, which is this one's cause; or another rank
                could not set up, and the message says which one and why.
            ShmcastError: what else `Hub` raises; the others then raise SegmentError.
        """
        from shmcast._hub.hosts.hub_meeting import HubMeeting  # rarely needed

        self = cls.__new__(cls)
        with HubMeeting(rank, size, exchange, label) as meeting:
            self._begin(
                meeting.make_end,
                size - 1,
                codec,
                slots=slots,
                slot_bytes=slot_bytes,
                arena_bytes=arena_bytes,
                spill_bytes=spill_bytes,
                pin=pin,
                reply_slots=reply_slots,
                reply_slot_bytes=reply_slot_bytes,
                wait=wait,
                on_member_death=on_member_death,
                on_death=on_death,
                warn_after=warn_after,
                label=label,
                member_label=meeting.names.__getitem__,
            )
        return self

    def _begin(
        self,
        make_end: Callable[..., HubEnd],
        members: int,
        codec: Codec | None,
        *,
        slots: int,
        slot_bytes: int,
        arena_bytes: int,
        spill_bytes: int,
        warn_after: float | None,
        label: str,
        **options: Any,
    ) -> None:
        """Make the end, with the operator's choices before the program's, and stand on it."""
        codecs = both_ways(settings.codec(codec), label)
        sending = Warmup.with_sample_of(codecs[0], label)
        receiving = ReplyWarmup.with_sample_of(codecs[1], label)
        end = make_end(
            members,
            slots=settings.count(settings.SLOTS, slots),
            slot_bytes=settings.count(settings.SLOT_BYTES, slot_bytes),
            arena_bytes=settings.count(settings.ARENA_BYTES, arena_bytes),
            spill_bytes=settings.count(settings.SPILL_BYTES, spill_bytes),
            warn_after=settings.seconds(settings.WARN_AFTER, warn_after),
            label=label,
            warmup=None if receiving is None else receiving.receive,
            **options,
        )
        Endpoint.__init__(self, end)
        ObjectSender.__init__(self, end, codecs[0], sending, end.warning_of_messages_after)
        ReplyReceiver.__init__(self, end, codecs[1])

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
