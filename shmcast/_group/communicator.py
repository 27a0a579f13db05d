"""What ranks say to one another beside the broadcasts: collectives, and messages between two."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._devices.work import Work
from shmcast._endpoints.dependencies import needing_torch
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._group.company import Company
from shmcast._group.departures import Departures
from shmcast._group.group_handle import title_of
from shmcast._group.notices import Notices, NoticeStore
from shmcast._group.options import Options
from shmcast._group.single_rank import SingleRank
from shmcast._nodes.topology import Topology
from shmcast.errors import InvalidArgument, WrongRole

if TYPE_CHECKING:
    from shmcast._group.collectives import Collectives
    from shmcast._group.point_to_point import PointToPoint
    from shmcast._nodes.source import SourceRelay


class Communicator:
    """The part of a `ShmBroadcaster` that is not for broadcasts.

    What it needs is made by the first call that does, of which each rank's waits for all others
    (point to point, only the receiver's for the sender's).
    """

    topology: Topology

    _label: str
    _group_name: str
    _end: FrameWriter | FrameReader | SourceRelay | SingleRank
    _company: Company
    _chosen_codec: Codec | None
    """The user's; None: each end has an `ObjectCodec` of its own."""
    _collectives: Collectives | None = None
    _point_to_point: PointToPoint | None = None
    _making = threading.Lock()

    def gather_object(self, obj: Any = None, timeout: float | None = None) -> list[Any] | None:
        """Send an object of each rank to the source: a collective.

        All ranks call the collectives of a broadcaster (this one, `all_gather_object`,
        `scatter_object` and `barrier`) in the same order. Broadcasts are independent of them. On
        other ranks than the source this does not wait for it, while there is room.

        After a time-out, an interrupt or a signal whose handler raises, call it again: it goes on
        where it was, with the object of the first call.

        Args:
            obj: anything that the codec can encode, by way of host memory if it is on a device. On
                the source it is returned as it is.
            timeout: seconds, None for ever.

        Returns:
            On the source, the objects in the order of the group. Where ranks that have died are
            dropped, a `PeerDied` stands for the object of such a rank. Elsewhere None.

        Raises:
            EncodeError: the codec can't encode `obj`. Nothing was sent, and the others still wait
                for this rank: call it again with another object.
            DecodeError: on the source, it can't decode an object; this collective is over.
            Timeout: some rank has not come in time; the error names it.
            PeerDied: a rank has died, and the source does not drop it.
            NodeLost: a node can't be reached any more.
            Closed: this broadcaster is closed, or a rank that is waited for has closed its own.
            Interrupted: `interrupt` was called.
            InvalidArgument: the ranks call different collectives, as far as this rank can see; or
                the group's store is not known, as where this rank has rejoined.
            ConcurrentUse: another thread is in a collective of this broadcaster.
            SegmentError: the ends for it could not be made.
        """
        return self._gathers().gather(obj, self._patient(timeout))

    def all_gather_object(self, obj: Any = None, timeout: float | None = None) -> list[Any]:
        """Send an object of each rank to all ranks: a collective, see `gather_object`.

        Returns:
            The objects in the order of the group, of this rank `obj` itself.

        Raises:
            ShmcastError: what `gather_object` raises.
        """
        return self._gathers().all_gather(obj, self._patient(timeout))

    def scatter_object(
        self, objs: Sequence[Any] | None = None, timeout: float | None = None
    ) -> Any:
        """Send each rank an object of its own from the source: a collective, see `gather_object`.

        The objects for ranks of one node travel together, and each of them reads them all: this is
        for small ones.

        Args:
            objs: on the source, as many objects as there are ranks, in the order of the group;
                ignored elsewhere.
            timeout: as for `gather_object`.

        Returns:
            This rank's object; on the source, as it is.

        Raises:
            InvalidArgument: `objs` is no such list; nothing was sent.
            ShmcastError: what else `gather_object` raises.
        """
        return self._gathers().scatter(objs, self._patient(timeout))

    def barrier(self, timeout: float | None = None) -> None:
        """Wait until all ranks have called this: a collective, see `gather_object`.

        Raises:
            ShmcastError: what `gather_object` raises.
        """
        collectives = self._collectives
        if collectives is None:
            collectives = self._gathers()
        collectives.barrier(self._patient(timeout))

    def isend_object(self, obj: Any, dst: int, timeout: float | None = None) -> Work:
        """Begin to send an object to another rank, which calls `recv_object` or `irecv_object`.

        This never waits for the other rank, and `obj` may be changed once it has returned. What
        finds no room is sent by a thread, while this process lives and the broadcaster is open.
        What is sent from one rank to another arrives in order.

        Args:
            obj: anything that the codec can encode, by way of host memory if it is on a device.
            dst: the receiver's global rank.
            timeout: seconds until it has to be sent, not received; None for ever.

        Returns:
            The work. Its `wait` returns None when the object is sent, which need not be waited for.
            It raises Timeout where there was no room in time: the receiver gets nothing of it. It
            also raises PeerDied, NodeLost, Closed (the receiver has closed, or this broadcaster
            is) and Interrupted (only the wait is ended: the next `wait` goes on).

        Raises:
            InvalidArgument: `dst` is no other rank of the group; or see `gather_object`.
            EncodeError: the codec can't encode `obj`; nothing was sent.
            Closed: this broadcaster is closed, or the receiver has closed.
            PeerDied: the receiver has died.
            NodeLost: its node can't be reached any more.
            SegmentError: the end for it could not be made.
        """
        timeout = self._patient(timeout)
        return self._sends().isend(obj, dst, timeout, "isend_object")

    def send_object(self, obj: Any, dst: int, timeout: float | None = None) -> None:
        """Send an object to another rank: `isend_object`, and wait until it is sent.

        Not until it is received: the ring holds it, or to another node as much memory of this one.

        Raises:
            ShmcastError: what `isend_object` and its work raise.
        """
        timeout = self._patient(timeout)
        self._sends().isend(obj, dst, timeout, "send_object").wait()

    def irecv_object(self, src: int, timeout: float | None = None) -> Work:
        """Begin to receive an object of another rank, which calls `send_object` or `isend_object`.

        The first call is for the first object, and so on, in whatever order they are waited for.

        Args:
            src: the sender's global rank.
            timeout: seconds from now on, None for ever.

        Returns:
            The work, whose `wait` returns the object. It raises Timeout (the object is for the next
            call then), Interrupted (it is still for this work: the next `wait` goes on), PeerDied,
            NodeLost, DecodeError, and Closed: the sender has closed and all was received, or this
            broadcaster is closed. Also where the two have never spoken before.

        Raises:
            InvalidArgument: `src` is no other rank of the group.
            Closed: this broadcaster is closed.
        """
        timeout = self._patient(timeout)
        return self._sends().irecv(src, timeout, "irecv_object", _as_it_is)

    def recv_object(self, src: int, timeout: float | None = None) -> Any:
        """Receive an object from another rank: `irecv_object`, and wait for it.

        Whatever ends this without an object, that is for the next call.

        Raises:
            ShmcastError: what `irecv_object` and its work raise.
        """
        timeout = self._patient(timeout)
        return self._sends().recv(src, timeout, "recv_object", _as_it_is)

    def isend_tensor_dict(self, d: dict[Any, Any], dst: int, timeout: float | None = None) -> Work:
        """Begin to send a dict to another rank, which calls one of the `recv_tensor_dict`s.

        As `isend_object`; tensors on a device that are values of the dict arrive on the receiver's
        current device of that type.

        Raises:
            InvalidArgument: `d` is no dict; nothing was sent.
            ShmcastError: what `isend_object` raises.
        """
        timeout = self._patient(timeout)
        action = "isend_tensor_dict"
        return self._sends().isend(self._staged(d, action), dst, timeout, action)

    def send_tensor_dict(self, d: dict[Any, Any], dst: int, timeout: float | None = None) -> None:
        """Send a dict to another rank: `isend_tensor_dict`, and wait until it is sent.

        Raises:
            ShmcastError: what `isend_tensor_dict` and its work raise.
        """
        timeout = self._patient(timeout)
        action = "send_tensor_dict"
        self._sends().isend(self._staged(d, action), dst, timeout, action).wait()

    def irecv_tensor_dict(self, src: int, timeout: float | None = None, out: Any = None) -> Work:
        """Begin to receive a dict from another rank: see `irecv_object`.

        Args:
            src: the sender's global rank.
            timeout: seconds from now on, None for ever.
            out: see `broadcast_tensor_dict`.

        Raises:
            InvalidArgument: as `irecv_object`; the work raises it, too, if the dict does not match
                `out`, which is then unchanged. The dict is consumed.
            ShmcastError: what else `irecv_object` raises.
        """
        finish = self._finish_for(out, action := "irecv_tensor_dict")
        return self._sends().irecv(src, self._patient(timeout), action, finish)

    def recv_tensor_dict(
        self, src: int, timeout: float | None = None, out: Any = None
    ) -> dict[Any, Any]:
        """Receive a dict from another rank: `irecv_tensor_dict`, and wait for it.

        Raises:
            ShmcastError: what `irecv_tensor_dict` and its work raise.
        """
        finish = self._finish_for(out, action := "recv_tensor_dict")
        d: dict[Any, Any] = self._sends().recv(src, self._patient(timeout), action, finish)
        return d

    def _finish_for(self, out: Any, action: str) -> Callable[[Any], Any]:
        """Return what makes a received dict of an object."""
        from shmcast._group.staging import unstaged

        label = self._company.label
        if out is None:
            return unstaged
        with needing_torch(f"{label}: {action}(out=)"):
            from shmcast._devices.receive import receive_into

        def finish(obj: Any) -> Any:
            return receive_into(label, unstaged(obj), out).wait()

        return finish

    def _staged(self, d: dict[Any, Any], action: str) -> dict[Any, Any]:
        if not isinstance(d, dict):
            raise InvalidArgument(
                f"{self._company.label}: {action}() is for a dict, not for a "
                f"{type(d).__qualname__}; use {action.replace('tensor_dict', 'object')}()"
            )
        from shmcast._group.staging import staged

        return staged(d)

    def _know(self, ranks: list[int], rank: int, group_src: int) -> None:
        """Know who is who: global ranks, and this one's and the source's places among them."""
        self._ranks = ranks
        self.group_rank: int = rank
        self.group_size: int = len(ranks)
        self.group_src: int = group_src
        self.src: int = ranks[group_src]
        self.is_src: bool = rank == group_src

    def _talk_by(
        self, options: Options, codec: Codec | None, store: NoticeStore | None, key: str
    ) -> None:
        """Know what this part needs, once the broadcaster is set up; see `Notices`."""
        self._chosen_codec = codec
        notices = Notices(store, key, self._label)
        self._company = Company(
            self._label,
            title_of(self._ranks, self._group_name),
            self._ranks,
            self.group_rank,
            self.src,
            self.topology,
            self._end,
            options,
            notices,
            Departures(notices, has_others=len(self.topology.nodes) > 1),
        )

    def _check_source(self, src: int) -> None:
        """Raise WrongRole unless `src` is the source of the broadcasts."""
        company = self._company
        if src != company.src:
            raise WrongRole(
                f"{company.label}: this broadcaster's source is rank {company.src}, not "
                f"src={src!r}: let all ranks of the group make another for that, "
                f"ShmBroadcaster(group, src={src!r}), and all others receive from it. To answer a "
                "source, there are gather_object, all_gather_object and isend_object"
            )

    def _patient(self, timeout: float | None) -> float | None:
        return self._company.options.patience if timeout is None else timeout

    def _gathers(self) -> Collectives:
        if self._collectives is None:
            from shmcast._group.collectives import Collectives

            with self._making:
                if self._collectives is None:
                    self._collectives = Collectives(self._company, self._make_codec())
        return self._collectives

    def _sends(self) -> PointToPoint:
        if self._point_to_point is None:
            from shmcast._group.point_to_point import PointToPoint

            with self._making:
                if self._point_to_point is None:
                    self._point_to_point = PointToPoint(self._company, self._make_codec)
        return self._point_to_point

    def _make_codec(self) -> Codec:
        return ObjectCodec() if self._chosen_codec is None else self._chosen_codec

    def interrupt(self) -> None:
        """End this rank's call that waits in another thread; see `Writer.interrupt`.

        Not a collective: others notice nothing. A broadcast of device tensors, once begun, goes on.
        If no other call waits, it is the broadcast's, or the next one.
        """
        parts = (self._collectives, self._point_to_point)
        waiting = [part for part in parts if part is not None and part.interrupt()]
        if not waiting:
            self._end.interrupt()

    def _close_talks(self, in_order: bool) -> None:
        """End this part; idempotent."""
        if os.getpid() != self._company.pid:
            return  # a fork's: all of it is its parent's
        self._company.leave(in_order)
        for part in (self._collectives, self._point_to_point):
            if part is not None:
                part.close(in_order)


def _as_it_is(obj: Any) -> Any:
    return obj
