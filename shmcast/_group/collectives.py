"""Gather, all-gather, scatter and barrier: what ranks do together beside the broadcasts.

Each rank speaks with the leader of its node through the node's hub, and each leader with the source
over a stream: one message a node in each direction.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec, Frame
from shmcast._endpoints import tracing
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.objects import refused, unsendable
from shmcast._group.collective_call import Call, Step
from shmcast._group.company import Company
from shmcast._group.node_hub import NodeHub
from shmcast._group.trunk import Trunk
from shmcast._host.signals import is_interruption
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.parcel import Parcel, Part
from shmcast.errors import (
    ConcurrentUse,
    DecodeError,
    Interrupted,
    InvalidArgument,
    PeerDied,
    Timeout,
)

GATHER, ALL_GATHER = "gather_object", "all_gather_object"
SCATTER, BARRIER = "scatter_object", "barrier"
_PURPOSES = (GATHER, ALL_GATHER, SCATTER, BARRIER)


class Collectives:
    """What a rank needs for them, made when it is first needed.

    Args:
        company: the group's.
        codec: makes frames of objects, and objects of frames.
    """

    def __init__(self, company: Company, codec: Codec) -> None:
        self._company = company
        self._codec = codec
        self._tracer = tracing.chosen()
        self._to_frames = tracing.call(self._tracer, tracing.ENCODE, codec.encode)
        self._to_object = tracing.call(self._tracer, tracing.DECODE, codec.decode)
        self._hub = NodeHub(company)
        self._trunk = Trunk(company)
        self._call: Call | None = None
        self._turn = threading.Lock()
        self._parts: dict[int, Part] = {}
        self._lost: set[int] = set()  # leaders of other nodes
        self._is_in_hub = False  # a call of this rank is
        self._has_passed = False  # the barrier that was begun last
        self._is_leader = company.me == company.here.leader
        self._is_src = company.me == company.src
        self._has_nodes = len(company.topology.nodes) > 1

    def gather(self, obj: Any, timeout: float | None) -> list[Any] | None:
        """See `ShmBroadcaster.gather_object`."""

        def begin() -> Call:
            self._parts = {self._company.me: [] if self._is_src else self._encode(obj)}
            call = Call(GATHER, lambda: self._objects(obj) if self._is_src else None)
            self._add_steps_up(call)
            return call

        gathered: list[Any] | None = self._run(GATHER, begin, timeout)
        return gathered

    def all_gather(self, obj: Any, timeout: float | None) -> list[Any]:
        """See `ShmBroadcaster.all_gather_object`."""

        def begin() -> Call:
            self._parts = {self._company.me: self._encode(obj)}
            call = Call(ALL_GATHER, lambda: self._objects(obj))
            self._add_steps_up(call)
            self._add_steps_down(call, lambda _ranks: self._parts)
            return call

        gathered: list[Any] = self._run(ALL_GATHER, begin, timeout)
        return gathered

    def scatter(self, objs: Sequence[Any] | None, timeout: float | None) -> Any:
        """See `ShmBroadcaster.scatter_object`."""
        company = self._company

        def begin() -> Call:
            if self._is_src:
                given = self._checked(objs)
                self._parts = {
                    rank: self._encode(obj)
                    for rank, obj in zip(company.ranks, given, strict=True)
                    if rank != company.me
                }
                call = Call(SCATTER, lambda: given[company.rank])
            else:
                self._parts = {}
                call = Call(SCATTER, lambda: self._object(company.me, company.src))
            self._add_steps_down(
                call, lambda ranks: {r: part for r, part in self._parts.items() if r in ranks}
            )
            return call

        return self._run(SCATTER, begin, timeout)

    def barrier(self, timeout: float | None) -> None:
        """See `ShmBroadcaster.barrier`."""
        if self._has_nodes or self._call is not None or not self._hub.is_complete:
            self._run(BARRIER, self._begin_barrier, timeout)
            return
        self._is_in_hub = True  # nothing but that: it is over in microseconds
        self._has_passed = False
        try:
            tracing.call(self._tracer, f"shmcast.{BARRIER}", self._pass_barrier)(timeout)
        except BaseException as error:
            is_to_go_on = isinstance(error, Timeout | Interrupted) or is_interruption(error)
            if is_to_go_on and not self._has_passed:
                self._call = self._begin_barrier()
            with self._company.telling_causes():
                raise
        finally:
            self._is_in_hub = False

    def _pass_barrier(self, timeout: float | None) -> None:
        self._hub.barrier(timeout)
        self._has_passed = True

    def _begin_barrier(self) -> Call:
        call = Call(BARRIER, lambda: None)
        here = Step(
            lambda left: self._hub.barrier(left.left()),
            lambda: self._company.names(self._hub.absent()),
            True,
        )
        call.steps.append(here)
        if self._has_nodes:
            if self._is_leader:
                self._parts = {}
                self._add_trunk_up(call)
                self._add_trunk_down(call, lambda _ranks: {})
            call.steps.append(here)
        return call

    def interrupt(self) -> bool:
        """End the call that waits in another thread; return whether there is one."""
        if self._is_in_hub:
            self._hub.interrupt()
        elif self._turn.locked():
            self._company.is_interrupted = True
        else:
            return False
        return True

    def close(self, in_order: bool) -> None:
        """End this rank's part; idempotent."""
        self._hub.close(in_order)
        self._trunk.close(in_order)

    # A call, and how it goes on.

    def _run(self, name: str, begin: Callable[[], Call], timeout: float | None) -> Any:
        company = self._company
        deadline = Deadline.after(check_timeout(timeout, company.label, name))
        company.check_open()
        if not self._turn.acquire(blocking=False):
            raise ConcurrentUse(
                f"{company.label}: {name} while another thread is in a collective of this "
                "broadcaster; give each thread a broadcaster of its own"
            )
        try:
            with company.telling_causes():
                if self._call is None:
                    call = begin()  # (what can't be encoded is told before anything is waited for)
                    self._hub.begin(name, deadline)
                    self._trunk.begin(name, deadline)
                    self._call = call
                elif self._call.name != name:
                    raise InvalidArgument(
                        f"{company.label}: {name} while {self._call.name} is not over, which has "
                        f"timed out or was interrupted: call {self._call.name} again first"
                    )
                return self._go_on(self._call, deadline)
        finally:
            self._is_in_hub = False
            self._turn.release()

    def _go_on(self, call: Call, deadline: Deadline) -> Any:
        try:
            tracing.call(self._tracer, f"shmcast.{call.name}", self._take_steps)(call, deadline)
            result = call.result()
        except Interrupted:
            raise
        except Timeout:
            raise Timeout(
                f"{self._company.label}: {call.name} timed out after {deadline.timeout} s: nothing "
                f"came from {call.steps[0].waits_for()}; call it again to go on waiting"
            ) from None
        except BaseException as error:
            if not is_interruption(error):
                self._call = None
            raise
        self._call = None
        return result

    def _take_steps(self, call: Call, deadline: Deadline) -> None:
        while call.steps:
            self._is_in_hub = call.steps[0].is_in_hub
            call.steps[0].take(deadline)
            call.steps.popleft()

    # What a rank says goes up to the source, by way of its leader.

    def _add_steps_up(self, call: Call) -> None:
        if not self._is_leader:
            frames = self._packed(call.name, self._parts)
            self._add_in_hub(
                call,
                lambda left: self._sent(self._hub.reply, frames, left),
                [self._company.here.leader],
            )
            return

        def collect(left: Deadline) -> None:
            for rank, frames in self._hub.collect(left).items():
                if isinstance(frames, PeerDied):
                    self._parts[rank] = frames
                else:
                    self._open(frames, call.name, rank)

        missing = self._hub.missing
        call.steps.append(Step(collect, lambda: self._company.names(missing()), True))
        self._add_trunk_up(call)

    def _add_trunk_up(self, call: Call) -> None:
        company = self._company
        if not self._has_nodes:
            return

        def send(left: Deadline) -> None:
            self._trunk.send(company.src, self._packed(call.name, self._parts), left, call.name)

        if not self._is_src:
            self._add_on_trunk(call, company.src, send)
            return
        for leader in self._trunk.leaders:
            self._add_on_trunk(call, leader, functools.partial(self._receive, call, leader))

    # And down to all, by way of the leaders.

    def _add_steps_down(
        self, call: Call, parts_for: Callable[[Sequence[int]], dict[int, Part]]
    ) -> None:
        company = self._company
        if not self._is_leader:

            def consume(left: Deadline) -> None:
                self._open(self._hub.consume(left), call.name, company.here.leader)

            self._add_in_hub(call, consume, [company.here.leader])
            return
        self._add_trunk_down(call, parts_for)

        def publish(left: Deadline) -> None:
            frames = self._packed(call.name, parts_for(company.here.ranks))
            self._sent(self._hub.publish, frames, left)

        others = [rank for rank in company.here.ranks if rank != company.me]
        self._add_in_hub(call, publish, others)

    def _add_trunk_down(
        self, call: Call, parts_for: Callable[[Sequence[int]], dict[int, Part]]
    ) -> None:
        company = self._company

        def send(rank: int, left: Deadline) -> None:
            parts = parts_for(company.topology.node_of(rank).ranks)
            self._trunk.send(rank, self._packed(call.name, parts), left, call.name)

        if not self._has_nodes:
            return
        if not self._is_src:
            receive = functools.partial(self._receive, call, company.src)
            self._add_on_trunk(call, company.src, receive)
            return
        for leader in self._trunk.leaders:
            self._add_on_trunk(call, leader, functools.partial(send, leader))

    def _add_in_hub(
        self, call: Call, take: Callable[[Deadline], object], whom: Sequence[int]
    ) -> None:
        call.steps.append(Step(take, lambda: self._company.names(whom), True))

    def _add_on_trunk(self, call: Call, rank: int, take: Callable[[Deadline], object]) -> None:
        """Add a step that needs the leader of another node: it may be dropped, with all of it."""
        company, ranks = self._company, self._company.topology.node_of(rank).ranks

        def take_or_drop(left: Deadline) -> None:
            if rank not in self._lost:
                try:
                    take(left)
                except PeerDied as error:
                    if not (self._is_src and company.drops):
                        raise
                    self._lost.add(rank)  # (to find it out anew would take a while each time)
                    company.deaths.update(dict.fromkeys(ranks, error))
            if rank in self._lost:
                for dead in ranks:
                    self._parts.setdefault(dead, company.dropped(dead))

        call.steps.append(Step(take_or_drop, lambda: self._company.name(rank), False))

    def _receive(self, call: Call, rank: int, left: Deadline) -> None:
        self._open(self._trunk.receive(rank, left, call.name), call.name, rank)

    # Objects, frames and parcels.

    def _packed(self, name: str, parts: dict[int, Part]) -> list[Frame]:
        return Parcel(_PURPOSES.index(name), parts).frames()

    def _open(self, frames: Sequence[Frame], name: str, rank: int) -> None:
        """Take in what a rank has sent."""
        parcel = Parcel.of(frames)
        theirs = _PURPOSES[parcel.purpose]
        if theirs != name:
            raise InvalidArgument(
                f"{self._company.label}: {name} while {self._company.name(rank)} calls {theirs}: "
                "all ranks must call the same collectives in the same order"
            )
        self._parts.update(parcel.parts)
        for one, part in parcel.parts.items():
            if isinstance(part, PeerDied):
                self._company.deaths[one] = part

    def _sent(
        self, send: Callable[[Sequence[Frame], Deadline], None], frames: list[Frame], left: Deadline
    ) -> None:
        try:
            send(frames, left)
        except (TypeError, BufferError) as error:
            told = unsendable(error, self._codec, self._company.label)
            raise told or error from error

    def _encode(self, obj: Any) -> Sequence[Frame]:
        try:
            return self._to_frames(obj)
        except Exception as error:
            if is_interruption(error):
                raise
            raise refused(obj, error, self._codec, self._company.label) from error

    def _objects(self, mine: Any) -> list[Any]:
        """Make the objects of all ranks, in the order of the group."""
        ranks = self._company.ranks
        return [mine if r == self._company.me else self._object(r, r) for r in ranks]

    def _object(self, rank: int, sender: int) -> Any:
        """Make the object of a rank, or for it."""
        part = self._parts.get(rank)
        if part is None:
            return self._company.dropped(rank)
        if isinstance(part, PeerDied):
            return part
        try:
            return self._to_object([*part])  # type: ignore[list-item]
        except Exception as error:
            if is_interruption(error):
                raise
            raise DecodeError(
                f"{self._company.label}: can't decode the object of {self._company.name(sender)}: "
                f"{type(error).__name__}: {error}; this collective is over, all have sent"
            ) from error

    def _checked(self, objs: Sequence[Any] | None) -> Sequence[Any]:
        size = len(self._company.ranks)
        if not isinstance(objs, Sequence) or isinstance(objs, str | bytes) or len(objs) != size:
            what = f"{len(objs)} objects" if isinstance(objs, Sequence) else repr(objs)
            raise InvalidArgument(
                f"{self._company.label}: scatter_object({what}): the source gives a list of {size} "
                "objects, one for each rank of the group"
            )
        return objs
