"""`Member`: receives a hub's objects and replies to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec
from shmcast._endpoints import settings
from shmcast._endpoints.base import Endpoint
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.long_waits import AS_MADE, AsMade, WarnAfter
from shmcast._endpoints.objects import ObjectReceiver, ObjectSink
from shmcast._endpoints.reader import Reader
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup
from shmcast._hub.handle import HubHandle
from shmcast._hub.hub import both_ways
from shmcast._hub.member_end import MemberEnd
from shmcast.errors import InvalidArgument


class Member(ObjectSink, Reader):
    """Receives the objects of a hub on this host, all of them and in order, and replies to them.

    Args:
        handle: the hub's `handle`.
        index: this member's number, from 0 to `handle.readers` - 1. Each is taken once; with
            `on_member_death="drop"` also again, in the place of a member that has died: the first
            message received is then the first that is sent from now on.
        wait: what to do while there is no message, or no room for a reply;
            `WaitPolicy.adaptive()` by default.
        codec: turns frames into objects and back; `ObjectCodec()` by default.
        pin: register the hub's arena with CUDA; see `Reader`.
        warn_after: seconds; when a wait lasts longer, the log tells who is slow. None: never.
        label: how errors name this endpoint; "member `index`" by default.
        peer_label: how errors name the others; "member `i`" and "hub" by default.

    Attributes:
        handle: where members find the segment.

    Raises:
        InvalidArgument: the index is out of range, or another argument of the wrong kind; a
            `Writer`'s handle, for instance.
        AlreadyAttached: the index is taken, or was taken by a member that has closed.
        ShmcastError: what else `Reader` raises.
    """

    _end: MemberEnd
    handle: HubHandle

    def __init__(
        self,
        handle: HubHandle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str | None = None,
        peer_label: Callable[[int], str] | None = None,
    ) -> None:
        if isinstance(handle, HubHandle) and handle.spans_hosts:
            raise InvalidArgument(
                f"member {index}: this hub spans hosts: its members come together at set-up, by "
                "Member.over, and no place is taken later or again; make a new hub by Hub.over"
            )
        if peer_label is None and isinstance(handle, HubHandle):
            peer_label = functools.partial(_default_label, handle.readers)
        self._begin(
            functools.partial(MemberEnd, handle, index, rejoin=True, peer_label=peer_label),
            codec,
            wait=wait,
            pin=pin,
            warn_after=warn_after,
            label=f"member {index}" if label is None else label,
        )

    @classmethod
    def over(
        cls,
        rank: int,
        size: int,
        exchange: Callable[[bytes], Sequence[bytes]],
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str | None = None,
    ) -> Member:
        """Become a member of a hub that may be on another host: a collective, see `Hub.over`.

        The first member of each other host leads it: threads of its process relay, also after its
        `close`, as long as the process lives. At its end it waits for other members of its host
        for up to 10 s.

        Args:
            rank: this process's.
            size: the number of ranks.
            exchange: an all-gather of the caller's own; see `Hub.over`.
            wait: see `Member`; so for the others.
            codec: of the same kind on every rank.
            pin: on the hub's host, whether to register its arena with CUDA.
            warn_after: seconds.
            label: how errors name this member; "member `index`" by default.

        Raises:
            InvalidArgument: there is no such rank, or `exchange` returns anything else; several
                ranks are the hub, or none is.
            SegmentError: `exchange` has raised an error, which is this one's cause; or another rank
                could not set up, and the message says which one and why.
            ShmcastError: what else `Member` raises; the others then raise SegmentError.
        """
        from shmcast._hub.hosts.member_meeting import MemberMeeting  # rarely needed

        self = cls.__new__(cls)
        with MemberMeeting(rank, size, exchange, label or f"rank {rank}") as meeting:
            self._begin(
                meeting.make_end,
                codec,
                wait=wait,
                pin=pin,
                warn_after=warn_after,
                label=f"member {meeting.index}" if label is None else label,
            )
        return self

    def _begin(
        self,
        make_end: Callable[..., MemberEnd],
        codec: Codec | None,
        *,
        warn_after: float | None,
        label: str,
        **options: Any,
    ) -> None:
        """Make the end, with the operator's choices before the program's, and stand on it."""
        codecs = both_ways(settings.codec(codec), label)
        receiving, sending = (Warmup.with_sample_of(codec, label) for codec in codecs)
        end = make_end(
            warn_after=settings.seconds(settings.WARN_AFTER, warn_after),
            label=label,
            warmup=None if receiving is None else receiving.receive,
            **options,
        )
        Endpoint.__init__(self, end)
        ObjectReceiver.__init__(self, end, codecs[0], receiving)
        ObjectSink.__init__(self, end, codecs[1], sending, Member.reply)

    def reply(
        self, obj: Any, timeout: float | None = None, *, warn_after: WarnAfter = AS_MADE
    ) -> None:
        """Reply to a message. Returns when the reply is in the ring, not when it was read.

        Each message that was received can be answered once, and none must be. Either the hub can
        receive the whole reply, or (when this raises) nothing of it, and the message can still be
        answered.

        Args:
            obj: anything that the codec can encode.
            timeout: seconds to wait for room in the ring, None for ever.
            warn_after: for this call, in place of what the member was made with.

        Raises:
            NoMessage: every message that was received has its reply.
            EncodeError: the codec can't encode `obj`.
            Timeout: the ring stayed full: the hub does not receive.
            Interrupted: `interrupt` was called.
            Closed: this member is closed, or the hub is.
            PeerDied: there is no room, or it is known already, and the hub has died; or another
                member has, and the hub does not drop it.
            ConcurrentUse: another thread is replying.
            Forked: this process was forked from the member's.
            MessageTooLarge: more than 1 TiB, or more than 8 388 607 frames.
        """
        if not isinstance(warn_after, AsMade):
            with self._end.warning_of_replies_after(warn_after):
                return Member.reply(self, obj, timeout)  # (a subclass may have its own)
        try:
            self._outbox[timeout] = obj  # (no call, see `FrameWriter.outbox`)
        except BaseException as error:
            self._not_sent(error, obj, timeout)
        return None

    @property
    def was_replied(self) -> bool:
        """Whether the last `reply` was sent: for one that a signal's handler has ended."""
        return self._end.was_sent

    def warm(self) -> None:
        """Warm up the next `reply`; see `Writer.warm`."""
        ObjectSink.warm(self)

    def interrupt(self) -> None:
        """End the calls that wait here in other threads, or that a signal's handler interrupts.

        They raise `Interrupted`, have taken or sent nothing, and this member goes on being usable.
        A call that is inside may just be done and return as usual. If none is inside, the next one
        that receives is ended. To be called from any thread, and from a signal's handler.
        """
        self._end.interrupt()

    def reply_statistics(self) -> Statistics:
        """Return what was replied so far, and in `lag` what the hub has yet to receive of it.

        From any thread. `statistics` tells of the messages.
        """
        return self._end.reply_statistics()


def _default_label(members: int, index: int) -> str:
    return f"member {index}" if index < members else "hub"
