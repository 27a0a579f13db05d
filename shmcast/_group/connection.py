"""A rank's end of a broadcaster, and what makes frames of objects there, or objects of frames."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmcast._codecs.base import Codec
from shmcast._devices.work import Work, finished
from shmcast._endpoints.copying import Copy
from shmcast._endpoints.dependencies import needing_torch
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.objects import ObjectReceiver, ObjectSender, checked_codec
from shmcast._endpoints.warmup import Warmup
from shmcast._group.codec_kind import CodecKind
from shmcast._group.group_handle import GroupHandle, label_of
from shmcast._group.one_node import OneNode
from shmcast._group.options import Options
from shmcast._group.progress import RankProgress
from shmcast._nodes.topology import Topology, warn_of_isolation

if TYPE_CHECKING:
    from shmcast._devices.lane import DeviceLane
    from shmcast._group.rendezvous import Rendezvous
    from shmcast._nodes.leader import LeaderRelay
    from shmcast._nodes.source import SourceRelay


@dataclass
class Connection:
    """What a rank sends and receives with: the first two on the source, the others elsewhere."""

    end: FrameWriter | FrameReader | SourceRelay
    topology: Topology
    """The group's."""
    relay: LeaderRelay | None = None
    """On a leader that is not the source."""
    is_relayed: bool = False
    """The group spans nodes."""
    call_on_dropped: Callable[[Callable[[list[int]], object]], None] | None = None
    """Of who sees that ranks die, where others can't: the source's, and each leader's."""
    send: Callable[[Any, float | None], Work | None] | None = None
    warm: Callable[[], None] | None = None
    recv: Callable[[float | None, Copy], Any] | None = None
    begin_recv: Callable[[float | None, Copy, Any], Work] | None = None
    warmup: Warmup | None = None
    """What practises the first, or the third; None: the codec has no sample."""

    def send_objects(self, codec: Codec, lane: DeviceLane | None) -> None:
        """Make frames of objects before the end."""
        assert not isinstance(self.end, FrameReader)  # noqa: S101 (this is the source)
        if lane is None:
            sender = ObjectSender(self.end, codec, self.warmup)
            self.send, self.warm = sender.send, sender.warm
        else:
            from shmcast._group.device_objects import DeviceSender

            device_sender = DeviceSender(self.end, lane, self.warmup)
            self.send, self.warm = device_sender.begin, device_sender.warm

    def receive_objects(self, codec: Codec, lane: DeviceLane | None) -> None:
        """Make objects of frames behind the end."""
        assert isinstance(self.end, FrameReader)  # noqa: S101 (this is not the source)
        if lane is None:
            self.recv = ObjectReceiver(self.end, codec, self.warmup).recv
            self.begin_recv = functools.partial(_begin_plain, self.end.label, self.recv)
        else:
            from shmcast._group.device_objects import DeviceReceiver

            device_receiver = DeviceReceiver(self.end, lane, self.warmup)
            self.recv, self.begin_recv = device_receiver.recv, device_receiver.begin

    def give_patience(self, seconds: float | None) -> None:
        """Let calls without a `timeout` have the operator's; None: they have none."""
        if seconds is None:
            return

        def patient(timeout: float | None) -> float:
            return seconds if timeout is None else timeout

        send, recv, begin = self.send, self.recv, self.begin_recv
        if send is not None:
            self.send = lambda obj, timeout: send(obj, patient(timeout))
        if recv is not None:
            self.recv = lambda timeout, copy: recv(patient(timeout), copy)
        if begin is not None:
            self.begin_recv = lambda timeout, copy, out: begin(patient(timeout), copy, out)


def connect(
    meeting: Rendezvous,
    options: Options,
    codec: Codec | None,
    lane: DeviceLane | None,
    error: Exception | None,
) -> Connection:
    """Bring the source and the other ranks together: a collective of the group.

    What goes wrong on one rank is raised on every rank.

    Args:
        meeting: of the group.
        options: the user's.
        codec: the user's; None: `ObjectCodec`.
        lane: carries device tensors; None: nothing does.
        error: why this rank can't take part; the other arguments may then be wrong.
    """
    ranks = meeting.ranks
    kind = CodecKind.of(codec)
    warmup: Warmup | None = None
    late_error: Exception | None = None  # told when the ranks have agreed
    try:
        codec = lane.codec if lane else checked_codec(codec, meeting.label)
        warmup = Warmup.with_sample_of(codec, meeting.label)
    except Exception as caught:  # the others must hear of it
        late_error = caught
    warm_receive = None if warmup is None else warmup.receive
    connection: Connection | None = None

    def equip(end: FrameWriter | FrameReader | SourceRelay, topology: Topology) -> None:
        # (Within a collective: what fails here must reach the others, too.)
        nonlocal connection
        if late_error is not None:
            raise late_error
        connection = Connection(end, topology, warmup=warmup)
        if lane is not None:
            here = topology.node_of(ranks[meeting.rank]).ranks
            readers = [rank for rank in here if rank != ranks[meeting.group_src]]
            lane.connect(meeting.group_src, ranks, RankProgress(end, ranks, here, readers))
        assert codec is not None  # noqa: S101 (else there was an error)
        if meeting.rank == meeting.group_src:
            connection.send_objects(codec, lane)
        else:
            connection.receive_objects(codec, lane)
        connection.give_patience(options.patience)

    near = OneNode(meeting, options, warm_receive, equip)
    try:
        terms = lane.terms if lane else None
        handle = meeting.agree(terms, kind, error, near.make_writer, near.populate)
        topology = meeting.explore(handle, near.attach, near.populate)
        if len(topology.nodes) == 1:
            meeting.conclude()
            near.begin()
            assert connection is not None  # noqa: S101 (equip() was called)
            return connection
    except BaseException:
        near.undo()
        raise
    near.undo()
    try:
        with needing_torch(f"{meeting.label}: a group that spans nodes"):
            from shmcast._group.many_nodes import connect_many_nodes
    except Exception as caught:
        meeting.share(lambda: None, late_error or caught)  # which raises it, here and elsewhere
        raise
    relay = connect_many_nodes(meeting, topology, options, warm_receive, equip, late_error)
    assert connection is not None  # noqa: S101 (as above)
    connection.relay, connection.is_relayed = relay, True
    sees = connection.end if relay is None else relay
    if not isinstance(sees, FrameWriter | FrameReader):
        connection.call_on_dropped = sees.call_on_dropped
    if meeting.isolation and meeting.rank == meeting.group_src:
        try:
            warn_of_isolation(meeting.label, topology, meeting.isolation)
        except BaseException:  # warnings are errors: the others have a broadcaster
            connection.end.give_up()
            raise
    return connection


def reconnect(handle: GroupHandle, rank: int, options: Options, codec: Codec | None) -> Connection:
    """Take the place of a rank that has died, without the group.

    Args:
        handle: of a living rank on the same node.
        rank: the dead one's global rank, which is among the node's readers.
        options: the user's.
        codec: the user's; None: `ObjectCodec`.

    Raises:
        ShmcastError: what `Reader` raises.
    """
    label = label_of(handle.ranks, handle.ranks.index(rank), handle.group_name)
    codec = checked_codec(codec, label)
    warmup = Warmup.with_sample_of(codec, label)
    end = FrameReader(
        handle,
        handle.reader_ranks.index(rank),
        rejoin=True,
        label=label,
        peer_label=handle.peer_names().__getitem__,
        warmup=None if warmup is None else warmup.receive,
        **options.for_reader(),
    )
    end.populate()
    connection = Connection(end, handle.topology, warmup=warmup)
    connection.receive_objects(codec, None)
    connection.give_patience(options.patience)
    return connection


def _begin_plain(
    label: str,
    recv: Callable[[float | None, Copy], Any],
    timeout: float | None,
    copy: Copy,
    out: Any,
) -> Work:
    """Receive an object into `out`, with a codec that knows no device tensors."""
    if out is None:
        return finished(recv(timeout, copy))
    with needing_torch(f"{label}: broadcast_tensor_dict(out=)"):
        from shmcast._devices.receive import receive_into

    return receive_into(label, recv(timeout, copy), out)
