"""`ShmBroadcaster`: one per process group; knows ranks and the source, not slots or bytes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

from shmcast._codecs.base import Codec
from shmcast._devices.work import Work
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER, is_orderly
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import DEFAULT_SLOT_BYTES, DEFAULT_SLOTS, FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import Shape
from shmcast._endpoints.objects import ObjectReceiver, ObjectSender, checked_codec
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup
from shmcast._group.device_setup import choose_lane
from shmcast._group.one_node import connect_one_node
from shmcast._group.options import Options
from shmcast._group.progress import RankProgress
from shmcast._group.single_rank import SingleRank
from shmcast._nodes.topology import Node, Topology, host_name
from shmcast.errors import InvalidArgument, PeerDied, WrongRole

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import DeviceLane
    from shmcast._group.rendezvous import Rendezvous
    from shmcast._nodes.leader import LeaderRelay
    from shmcast._nodes.source import SourceRelay


class ShmBroadcaster:
    """Broadcasts Python objects from one rank of a process group to all others.

    Making one is a collective: every rank of the group makes it, at the same point of its program
    and with the same source, as for `torch.distributed.new_group`. From then on the group is not
    used any more, unless for device tensors, and calls of several broadcasters don't disturb each
    other. In a group of one rank there is no segment and nothing is copied.

    Ranks of one node share memory. Where the group spans nodes, each other node gets every message
    once, over a gloo group of the source and one leader for each node (see docs/nodes.md).

    Device tensors, wherever they are in an object, are broadcast over a process group. They arrive
    on each rank's current device, as they were: shape, strides (of dense layouts), dtype,
    requires_grad, and one tensor that was there twice is one again. Small ones of one message
    share their storage.

    Args:
        group: a process group of any backend; None is the default group.
        src: the source as a global rank; None to give it by `group_src`.
        group_src: the source as a rank in the group.
        wait: see `Writer` and `Reader`; may differ from rank to rank.
        codec: see `Writer` and `Reader`; must be the like on every rank. Only with `PickleCodec`
            device tensors can be broadcast.
        device_group: a process group that carries device tensors (NCCL), with the same ranks in
            the same order as `group`. None: `group` itself, where it has a backend of its own for
            the device; else they are staged through host memory, with a `ShmcastWarning`. Other
            collectives on it must not come in between in another order on some ranks.
        device_types: types of devices whose tensors are broadcast so, as in `torch.device`; None:
            all but "cpu". With {"cpu"} gloo carries tensors in host memory: to try things out.
        on_reader_death: see `Writer`. Only the source's value counts; so for those up to the next.
        on_death: see `Writer`. Of the ranks of the source's own node.
        slots, slot_bytes, arena_bytes: see `Writer`.
        warn_after: see `Writer`; may differ from rank to rank.
        pin: see `Writer` and `Reader`; may differ from rank to rank.

    Raises:
        InvalidArgument: no such rank in the group, this process is not in the group, or the ranks
            name different sources or device groups. Of the device group: it has other ranks, or no
            backend for one of the `device_types`.
        SharedMemoryFull: on the source; the other ranks then raise SegmentError.
        SegmentError: another rank could not set up; the message says which one and why.
    """

    # Bound once: in a decode loop every look-up on the way is a cache miss.
    _send: Callable[[Any, float | None], Work | None]  # on the source
    _recv: Callable[[float | None, bool], Any]  # elsewhere
    _begin_recv: Callable[[float | None, bool, Any], Work]

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
        pin: bool = False,
        device_group: ProcessGroup | None = None,
        device_types: Collection[str] | None = None,
    ) -> None:
        from shmcast._group.rendezvous import Rendezvous

        meeting = Rendezvous(group, src, group_src)
        self.group_rank: int = meeting.rank
        """This process's rank in the group."""
        self.group_size: int = len(meeting.ranks)
        """Number of ranks in the group."""
        self.group_src: int = meeting.group_src
        """The source's rank in the group."""
        self.src: int = meeting.ranks[meeting.group_src]
        """The source's global rank."""
        self.is_src: bool = meeting.rank == meeting.group_src
        """Whether this process is the source."""
        self.topology: Topology
        """Which ranks share a node, and who leads it; the same on every rank."""
        self._label = meeting.label
        self._end: FrameWriter | FrameReader | SourceRelay | SingleRank
        self._relay: LeaderRelay | None = None
        self._lane: DeviceLane | None = None
        error: Exception | None = None
        options = Options(
            wait, on_reader_death, warn_after, slots, slot_bytes, arena_bytes, pin, on_death
        )
        try:
            self._lane = choose_lane(group, device_group, device_types, meeting, codec)
        except Exception as caught:
            error = caught
        if self.group_size > 1:
            self.topology = meeting.agree(self._lane.terms if self._lane else None, error)
            self._set_up(meeting, options, codec)
        elif error is not None:
            raise error
        else:
            self.topology = Topology((Node(0, host_name(), self.src, (self.src,)),))
            self._end = SingleRank(self._label)
            self._send, self._warm = self._end.send, self._end.warm

    def _set_up(self, meeting: Rendezvous, options: Options, codec: Codec | None) -> None:
        """Bring the source and the other ranks together."""
        ranks = meeting.ranks
        self._reader_ranks = [ranks[r] for r in meeting.readers]  # by index in the ring
        warmup: Warmup | None = None
        error: Exception | None = None
        try:
            codec = self._lane.codec if self._lane else checked_codec(codec, self._label)
            warmup = Warmup.with_sample_of(codec, self._label)
        except Exception as caught:  # the others must hear of it
            error = caught
        warm_receive = None if warmup is None else warmup.receive
        end: FrameWriter | FrameReader | SourceRelay
        if len(self.topology.nodes) == 1:
            readers = [ranks[r] for r in meeting.readers]
            self._end = end = connect_one_node(meeting, options, warm_receive, error)
        else:
            from shmcast._group.many_nodes import Members

            members = Members(meeting, self.topology, options, warm_receive, error)
            self._end = end = members.end
            self._relay = members.relay
            self._reader_ranks = readers = members.readers
            # (A relay serves other nodes, too: nobody but its owner can end it.)
            weakref.finalize(self, members.end.close)
        if self._lane is not None:
            here = self.topology.node_of(ranks[meeting.rank]).ranks
            self._lane.connect(self.group_src, ranks, RankProgress(end, ranks, here, readers))
        assert codec is not None  # noqa: S101 (else the error was raised on every rank)
        self._connect_objects(end, codec, warmup)

    def _connect_objects(
        self,
        end: FrameWriter | FrameReader | SourceRelay,
        codec: Codec,
        warmup: Warmup | None,
    ) -> None:
        """Put what makes frames of objects, or objects of frames, before this rank's end."""
        if self._lane is not None:
            from shmcast._group.device_objects import DeviceReceiver, DeviceSender

            if isinstance(end, FrameReader):
                device_receiver = DeviceReceiver(end, self._lane)
                self._recv, self._begin_recv = device_receiver.recv, device_receiver.begin
            else:
                device_sender = DeviceSender(end, self._lane, warmup)
                self._send, self._warm = device_sender.begin, device_sender.warm
        elif isinstance(end, FrameReader):
            self._recv = ObjectReceiver(end, codec).recv
            self._begin_recv = functools.partial(_begin_plain, self._label, self._recv)
        else:
            sender = ObjectSender(end, codec, warmup)
            self._send, self._warm = sender.send, sender.warm

    def broadcast_object(
        self, obj: Any = None, timeout: float | None = None, copy: bool = True
    ) -> Any:
        """Sends `obj` on the source, receives it on every other rank; returns it on all.

        On the source it returns when the object is in shared memory, and returns `obj` itself.

        Device tensors are ready in stream order when it returns, as after a collective of
        `torch.distributed`: with NCCL the host does not wait for them, unless a `timeout` is given;
        then it waits until every rank has enqueued its part.

        Args:
            obj: on the source, anything that the codec can encode; ignored elsewhere.
            timeout: seconds, None for ever: for room in the ring on the source, for the object
                elsewhere. After that so many again for device tensors, at least one second; None:
                what the process group grants.
            copy: see `Reader.recv`; ignored on the source.

        Raises:
            DeviceTimeout: a rank has not taken part in the broadcast of the device tensors.
            DeviceError: they could not be broadcast, or an earlier broadcast of some had failed.
            NodeLost: another node can't be reached any more; on its side, the source's node.
            ShmcastError: what `Writer.send` raises on the source, and `Reader.recv` elsewhere.
        """
        if self.is_src:
            work = self._send(obj, timeout)
            if work is not None:
                work.wait()
            return obj
        return self._recv(timeout, copy)

    def broadcast_tensor_dict(
        self,
        d: dict[Any, Any] | None = None,
        timeout: float | None = None,
        out: Any = None,
        async_op: bool = False,
        copy: bool = True,
    ) -> Any:
        """`broadcast_object` for dicts, which can receive into given tensors and need not wait.

        Args:
            d: on the source, a dict of anything; ignored elsewhere.
            out: on the other ranks, an object with tensors in the same places, of the same shapes
                and dtypes, in dicts, lists, tuples, NamedTuples and dataclasses at any depth.
                They are received into, device or not, and keep their addresses, as CUDA graphs
                need it. What is no tensor need not match. Device tensors of 256 KiB and more whose
                strides match arrive in place, others are copied there.
            timeout: as for `broadcast_object`.
            async_op: return as soon as the work on device tensors is enqueued.
            copy: see `Reader.recv`; ignored on the source.

        Returns:
            The dict, on every rank; it has the tensors of `out` where that was given. With
            `async_op` a `Work`, whose `wait()` returns it.

        Raises:
            InvalidArgument: `d` is no dict (on the source, before anything is sent); or the message
                does not match `out`: the error names the path, such as `d["a"][0]`. This rank has
                then taken part for the others' sake, and `out` is unchanged.
            ShmcastError: what `broadcast_object` raises.
        """
        if self.is_src:
            if d.__class__ is not dict and not isinstance(d, dict):  # (without a call, mostly)
                raise InvalidArgument(
                    f"{self._label}: broadcast_tensor_dict() is for a dict, not for a "
                    f"{type(d).__qualname__}; use broadcast_object()"
                )
            work = self._send(d, timeout)
            if work is not None:
                return work if async_op else work.wait()
            return Work.done(d) if async_op else d
        if out is None and not async_op:
            return self._recv(timeout, copy)
        work = self._begin_recv(timeout, copy, out)
        return work if async_op else work.wait()

    def send(self, obj: Any, timeout: float | None = None) -> None:
        """`broadcast_object` for code that runs on the source only.

        Raises:
            WrongRole: on another rank. And what `broadcast_object` raises.
        """
        if not self.is_src:
            raise WrongRole(
                f"{self._label}: send() is for the source, rank {self.src}; call recv() here"
            )
        work = self._send(obj, timeout)
        if work is not None:
            work.wait()

    def recv(self, timeout: float | None = None, copy: bool = True) -> Any:
        """`broadcast_object` for code that runs on the other ranks only.

        Raises:
            WrongRole: on the source. And what `broadcast_object` raises.
        """
        if self.is_src:
            raise WrongRole(
                f"{self._label}: recv() is for the other ranks, this is the source; call send()"
            )
        return self._recv(timeout, copy)

    def empty(self, shape: Shape, dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
        """An array in the arena, to fill and send without a copy: see `Writer.empty`.

        Raises:
            WrongRole: on another rank than the source. And what `Writer.empty` raises.
        """
        return self._lender("empty").empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`empty` as a tensor on the CPU: see `Writer.empty_tensor`.

        Raises:
            ShmcastError: what `empty` raises.
        """
        return self._lender("empty_tensor").empty_tensor(shape, dtype)

    def thaw(self, array: npt.NDArray[Any] | torch.Tensor) -> bool:
        """Whether every rank is done with a loan that was sent: see `Writer.thaw`.

        Raises:
            ShmcastError: what `empty` raises.
        """
        return self._lender("thaw").thaw(array)

    def record_stream(self, view: npt.NDArray[Any] | torch.Tensor, stream: torch.Stream) -> None:
        """Tells of work on a stream that reads a pinned view or loan: see `Writer`."""
        self._end.record_stream(view, stream)

    def _lender(self, action: str) -> FrameWriter | SourceRelay | SingleRank:
        if isinstance(self._end, FrameReader):
            raise WrongRole(
                f"{self._label}: {action}() is for the source, rank {self.src}; receive with "
                "copy=False here"
            )
        return self._end

    def warm(self) -> None:
        """Makes the next `send` faster; see `Writer.warm`. Does nothing on the other ranks.

        Raises:
            ShmcastError: what `Writer.warm` raises.
        """
        if self.is_src:
            self._warm()

    @property
    def handle(self) -> Handle | None:
        """Where another process finds the segment, to take the place of a rank that has died.

        `Reader(handle, index, rejoin=True)`, if the source drops such ranks; the index counts the
        ranks in the group without the source. None in a group of one.
        """
        return self._end.handle

    @property
    def dropped(self) -> dict[int, PeerDied]:
        """How ranks of the source's node have died that are dropped, by global rank."""
        dropped = {} if isinstance(self._end, FrameReader) else self._end.dropped()
        return {self._reader_ranks[index]: died for index, died in dropped.items()}

    def statistics(self) -> Statistics:
        """What this rank has sent or received so far; on a leader also what it has relayed."""
        base = self._end.statistics()
        return base if self._relay is None else self._relay.statistics(base)

    def close(self) -> None:
        """Ends this rank's part; idempotent, not a collective.

        Closed on the source, the other ranks receive what was sent and then raise `Closed`. Closed
        elsewhere, the source goes on with the others; a leader relays to its node's other ranks
        as long as its process lives. Does not wait; where there are other nodes, the source's
        process waits when it exits, for at most 10 s, until they have taken what was sent.
        """
        self._end.close()
        if self._relay is not None:
            self._relay.reader_closed()

    def __enter__(self) -> ShmBroadcaster:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Close this rank's part; after an exception, tell the others that it has failed."""
        if not is_orderly(error):
            self._end.give_up()
        self.close()


def _begin_plain(
    label: str,
    recv: Callable[[float | None, bool], Any],
    timeout: float | None,
    copy: bool,
    out: Any,
) -> Work:
    """Receive an object into `out`, with a codec that knows no device tensors."""
    obj = recv(timeout, copy)
    if out is None:
        return Work.done(obj)
    from shmcast._devices.receive import receive_into  # (imports torch)

    return receive_into(label, obj, out)
