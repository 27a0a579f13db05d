"""`ShmBroadcaster`: one per process group; knows ranks and the source, not slots or bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal

from shmcast._codecs.base import Codec
from shmcast._endpoints import settings
from shmcast._endpoints.dependencies import needing_torch
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER, is_orderly
from shmcast._endpoints.frame_writer import DEFAULT_SLOT_BYTES, DEFAULT_SLOTS, DEFAULT_SPILL_BYTES
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._group.broadcasts import Broadcasts
from shmcast._group.connection import Connection, connect, reconnect
from shmcast._group.device_setup import choose_lane
from shmcast._group.group_handle import GroupHandle, checked_place, label_of
from shmcast._group.lender import Lender
from shmcast._group.options import Options
from shmcast._group.parties import parties_by
from shmcast._group.rendezvous import Rendezvous
from shmcast._group.single_rank import SingleRank
from shmcast._host.words import counted
from shmcast._nodes.topology import Node, Topology, host_name
from shmcast.errors import PeerDied

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import DeviceLane
    from shmcast._nodes.leader import LeaderRelay


class ShmBroadcaster(Broadcasts, Lender):
    """Broadcasts Python objects from one rank of a process group to all others, and back.

    Making one is a collective: every rank of the group makes it, at the same point of its program
    and with the same source, as for `torch.distributed.new_group`. From then on the group is used
    only for device tensors, and several broadcasters don't disturb each other. In a group of one
    rank there is no segment and nothing is copied.

    Ranks of one node share memory. Each other node gets every message once, over a gloo group of
    the source and one leader for each node (see "Several nodes" in the documentation).

    Device tensors, anywhere in an object, are broadcast over a process group. They arrive on each
    rank's current device with the same shape, strides (of dense layouts), dtype and requires_grad;
    one that occurs twice is one tensor again. Small ones of one message share their storage.

    Args:
        group: a process group of any backend; None is the default group.
        src: the source as a global rank; None to give it by `group_src`.
        group_src: the source as a rank in the group.
        wait: see `Writer` and `Reader`; may differ from rank to rank.
        codec: see `Writer` and `Reader`; the same kind on every rank. Device tensors can be
            broadcast only with `ObjectCodec` and `PickleCodec`.
        device_group: a process group that carries device tensors (NCCL), with the same ranks in
            the same order as `group`. None: `group` itself, where it has a backend of its own for
            the device; else they are staged through host memory, with a `ShmcastWarning`. All
            ranks must issue its other collectives in the same order between broadcasts.
        device_types: types of devices whose tensors are broadcast so, as in `torch.device`; None:
            all but "cpu". With {"cpu"} gloo carries tensors in host memory, for trying things out.
        on_reader_death: see `Writer`. Counts on the source, and on each other node's leader.
        on_death: see `Writer`. Of the ranks of the source's own node.
        warn_after: see `Writer`; may differ from rank to rank.
        slots: see `Writer`. Counts on the source, and on each other node's leader; so do the next.
        slot_bytes: see `Writer`.
        arena_bytes: see `Writer`.
        spill_bytes: see `Writer`.
        switch_interval: see `Writer`; may differ from rank to rank.
        pin: see `Writer` and `Reader`; may differ from rank to rank.
        label: what errors and `shmcast list` call the broadcaster; None: what the group is called.
        timeout: seconds for all ranks to come and to set up; may differ from rank to rank. The
            error names who has not come, and all may try again. None: the process group's own.

    Attributes:
        group_rank: this process's rank in the group.
        group_size: number of ranks in the group.
        group_src: the source's rank in the group.
        src: the source's global rank.
        is_src: whether this process is the source.
        topology: which ranks share a node, and who leads it; the same on every rank.

    Raises:
        MissingDependency: there is no torch; `over` makes broadcasters without it.
        InvalidArgument: no such rank in the group, this process is not in the group, or the ranks
            name different sources or device groups, or have different codecs. Of the device group:
            it has other ranks, or no backend for one of the `device_types`.
        Timeout: some rank did not come in time.
        SharedMemoryFull: on the source; the other ranks then raise SegmentError.
        SegmentError: another rank could not set up; the message says which one and why.
    """

    _relay: LeaderRelay | None = None
    _was_closed = False

    def __init__(
        self,
        group: ProcessGroup | None = None,
        src: int | None = None,
        group_src: int = 0,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        on_death: Callable[[PeerDied], object] | None = None,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        spill_bytes: int = DEFAULT_SPILL_BYTES,
        pin: bool = False,
        switch_interval: float | None = None,
        device_group: ProcessGroup | None = None,
        device_types: Collection[str] | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> None:
        with needing_torch("ShmBroadcaster() for a process group"):
            from shmcast._group.gathering import parties_of

        options = Options(
            wait, on_reader_death, warn_after, slots, slot_bytes, arena_bytes, pin, on_death,
            spill_bytes, switch_interval,
        )  # fmt: skip
        meeting = Rendezvous(parties_of(group), src, group_src, timeout, label)
        self._set_up(meeting, options, codec, device_group, device_types)

    @classmethod
    def over(
        cls,
        rank: int,
        size: int,
        exchange: Callable[[bytes], Sequence[bytes]],
        src: int = 0,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        on_death: Callable[[PeerDied], object] | None = None,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        spill_bytes: int = DEFAULT_SPILL_BYTES,
        pin: bool = False,
        switch_interval: float | None = None,
        device_group: ProcessGroup | None = None,
        device_types: Collection[str] | None = None,
        label: str | None = None,
    ) -> ShmBroadcaster:
        """Make one without a process group, over ranks that the caller can connect: a collective.

        On one node it needs no torch, unless a `device_group` is given. Tensors on a device
        then travel by host memory, as torch pickles them.

        Args:
            rank: this process's.
            size: the number of ranks.
            exchange: an all-gather of the caller's own: is given bytes, some KB, and returns a list
                of what each rank has given it in the same call, in the order of ranks. It is called
                up to 7 times here, and not kept. It should have a time-out, for ranks that never
                come. After an error on this rank it is called once more, to tell the others.
            src: the source's rank, the same on all ranks.
            wait: see `ShmBroadcaster`; so for the others.
            codec: of the same kind on every rank.
            on_reader_death: "raise" or "drop".
            on_death: called in the source's node.
            warn_after: seconds.
            slots: of the rings.
            slot_bytes: of a slot.
            arena_bytes: of the arena.
            spill_bytes: of the spill.
            pin: whether to register the arena with CUDA.
            switch_interval: seconds.
            device_group: a process group that carries device tensors, with the same ranks.
            device_types: of devices whose tensors it carries; needs a `device_group`.
            label: what errors and `shmcast list` call the broadcaster.

        Raises:
            InvalidArgument: there is no such rank or source, or `exchange` returns anything else;
                or the ranks name other sizes or sources, or the same rank, or other codecs.
            MissingDependency: there is no torch, and the ranks are on several nodes.
            SegmentError: `exchange` has raised an error, which is this one's cause; or another rank
                could not set up, and the message says which one and why.
            SharedMemoryFull: on the source; the other ranks then raise SegmentError.
        """
        options = Options(
            wait, on_reader_death, warn_after, slots, slot_bytes, arena_bytes, pin, on_death,
            spill_bytes, switch_interval,
        )  # fmt: skip
        self = cls.__new__(cls)
        meeting = Rendezvous(parties_by(exchange, rank, size), src, 0, None, label)
        self._set_up(meeting, options, codec, device_group, device_types)
        return self

    def _set_up(
        self,
        meeting: Rendezvous,
        options: Options,
        codec: Codec | None,
        device_group: ProcessGroup | None,
        device_types: Collection[str] | None,
    ) -> None:
        """Meet the others."""
        self._know(meeting.ranks, meeting.rank, meeting.group_src)
        self.topology: Topology
        self._label, self._group_name = meeting.label, meeting.group_name
        self._lane: DeviceLane | None = None
        error: Exception | None = None
        connection: Connection | None = None
        try:
            options = options.with_settings()
            codec = settings.codec(codec)
            self._lane = choose_lane(device_group, device_types, meeting, codec)
        except Exception as caught:
            error = caught
        if self.group_size > 1:
            connection = connect(meeting, options, codec, self._lane, error)
            self._use(connection)
        else:
            meeting.conclude()
            if (error := meeting.error or error) is not None:
                raise error
            self.topology = Topology((Node(0, host_name(), self.src, (self.src,)),))
            self._end = SingleRank(self._label)
            self._send, self._warm = self._end.send, self._end.warm
        self._talk_by(options, codec, meeting.store, meeting.key)
        if connection is not None and connection.call_on_dropped is not None:
            connection.call_on_dropped(self._company.departures.tell_dropped)

    def _use(self, connection: Connection) -> None:
        """Send and receive with what the ranks' meeting has led to."""
        self._end, self._relay = connection.end, connection.relay
        self.topology = connection.topology
        if connection.send is not None:
            self._send = connection.send
        if connection.warm is not None:
            self._warm = connection.warm
        if connection.recv is not None:
            self._recv = connection.recv
        if connection.begin_recv is not None:
            self._begin_recv = connection.begin_recv
        if connection.warmup is not None:
            connection.warmup.broadcast_as(self, ShmBroadcaster.broadcast_object)
        if connection.is_relayed:
            # (A relay serves other nodes, too: nobody but its owner can end it.)
            weakref.finalize(self, connection.end.give_up).atexit = False

    @property
    def handle(self) -> Handle | None:
        """Where another process finds this node's segment, to take the place of a dead rank there.

        That process makes `ShmBroadcaster.rejoin(handle, rank)`, if the source drops such ranks; or
        `Reader(handle, index, rejoin=True)`, where the index counts the node's ranks without the
        source. None where there is no segment.
        """
        handle = self._end.handle
        if handle is None or isinstance(handle, GroupHandle):
            return handle
        rank = self._ranks[self.group_rank]
        return GroupHandle.of(handle, self.topology, self._ranks, self.src, rank, self._group_name)

    @classmethod
    def rejoin(
        cls,
        handle: Handle,
        rank: int,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        pin: bool = False,
        switch_interval: float | None = None,
    ) -> ShmBroadcaster:
        """Take the place of a rank that has died, if the source drops such; not a collective.

        The process need not be in the process group, nor have one. The first message it receives is
        the first that is sent from now on. Device tensors it can't receive.

        Args:
            handle: the `handle` of a living rank on this node, the source's where there is one.
            rank: the global rank that has died; it is no leader.
            wait: see `ShmBroadcaster`; so for the others.
            codec: of the same kind as the other ranks'.
            warn_after: seconds.
            pin: whether to register the arena with CUDA.
            switch_interval: seconds; see `Writer`.

        Raises:
            InvalidArgument: it is no handle of a broadcaster, or the rank is not one of those that
                receive on its node.
            AlreadyAttached: the rank lives.
            ShmcastError: what `Reader` raises.
        """
        handle = checked_place(handle, rank)
        options = Options.of_reader(wait, warn_after, pin, switch_interval)
        self = cls.__new__(cls)
        self._know([*handle.ranks], handle.ranks.index(rank), handle.ranks.index(handle.src))
        self._group_name, self._lane = handle.group_name, None
        self._label = label_of(handle.ranks, self.group_rank, handle.group_name)
        codec = settings.codec(codec)
        options = options.with_settings()
        self._use(reconnect(handle, rank, options, codec))
        self._talk_by(options, codec, None, "")
        return self

    @property
    def dropped(self) -> dict[int, PeerDied]:
        """How ranks have died that are dropped, by global rank; on the source, else empty.

        Of the source's own node, as soon as they have died; and of other nodes, as far as it has
        noticed: a lost leader is all ranks of its node, others are told of in collectives.
        """
        return self._company.all_dropped() if self.is_src and self._company.drops else {}

    def statistics(self) -> Statistics:
        """Return what this rank has sent or received so far; on a leader also what it relayed."""
        base = self._end.statistics()
        return base if self._relay is None else self._relay.statistics(base)

    @property
    def closed(self) -> bool:
        """Whether `close` was called here."""
        return self._was_closed

    def close(self) -> None:
        """End this rank's part; idempotent, not a collective.

        After `close` on the source, the other ranks receive what was sent and then raise `Closed`.
        After `close` elsewhere, the source goes on with the others, and a leader relays to its
        node's other ranks as long as its process lives.

        Waits for at most 10 s for ranks that have yet to begin to receive what `send_object` or
        `isend_object` has sent them, or on another node to make room for it; then a
        `ShmcastWarning` says what is lost. Not for ranks that have closed or died. Where there are
        other nodes, the source's process also waits when it exits, for at most 10 s, until they
        have taken what was broadcast.
        """
        self._was_closed = True
        self._close_talks(in_order=True)
        self._end.close()
        if self._relay is not None:
            self._relay.reader_closed()
        if self._lane is not None:
            self._lane.close()

    def __repr__(self) -> str:
        if not hasattr(self, "topology"):  # its constructor has failed; or it is for practice
            return object.__repr__(self)
        role = "the source" if self.is_src else f"receives from rank {self.src}"
        return (
            f"<{type(self).__module__}.{type(self).__qualname__} {self._label}: {role}, "
            f"{counted(len(self.topology.nodes), 'node')}>"
        )

    def __enter__(self) -> ShmBroadcaster:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Close this rank's part; after an exception, tell the others that it has failed."""
        if not is_orderly(error, receives=not self.is_src):
            self._close_talks(in_order=False)
            self._end.give_up()
        self.close()
